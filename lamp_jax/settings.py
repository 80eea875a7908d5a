"""Settings of each training method that the library and the commands share."""

from dataclasses import dataclass
from typing import Literal

from lamp_jax.config import (
    CORRECT,
    Answering,
    Compatibility,
    Encoding,
    Learning,
    Lora,
    Optimization,
    Profiles,
    Prompting,
    ScratchEncoder,
    Storage,
)


@dataclass(frozen=True)
class Scratch:
    """Size of a generator trained from scratch (`--model scratch`), with FLAN-T5's architecture."""

    d_model: int = 128
    """Width."""
    d_ff: int = 256
    """Width of the feed-forward layers."""
    num_layers: int = 2
    """Number of encoder layers."""
    num_decoder_layers: int = 2
    """Number of decoder layers."""
    num_heads: int = 4
    """Number of attention heads, each of size d_model / num_heads."""
    vocab_size: int = 4096
    """Vocabulary size of the tokenizer, which is trained on the prompts and answers of the train file."""
    dropout: float = 0.1
    """Dropout rate."""


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """Settings of prompts."""

    prompting: Prompting = Prompting()
    seed: int = 0
    """Random seed of the `random` retriever."""
    compatibility: Compatibility = CORRECT


@dataclass(frozen=True, kw_only=True)
class GeneratorTraining:
    """Settings of training a generator on prompts and answers."""

    scratch: Scratch = Scratch()
    retrievers: tuple[str, ...] = ("file",)
    """Retrievers that order the profiles in the train prompts; with several, each question gives one example per
    retriever."""
    prompting: Prompting = Prompting()
    profile_targets: int = 0
    """Number of additional train examples per profile: its newest N items, each with only the items before it as
    profile."""
    learning: Learning = Learning()
    seed: int = 0
    """Random seed of initialization, dropout, the order of examples and the `random` retriever."""
    validation_size: int = 0
    """Number of validation questions per evaluation, from the first; 0: all."""
    answering: Answering = Answering()
    compatibility: Compatibility = CORRECT


@dataclass(frozen=True, kw_only=True)
class Ropg:
    """Settings of training a retriever on feedback on items (arXiv 2404.05970, section 4.1)."""

    method: Literal["kd", "rl"] = "kd"
    """Objective: distillation of the softmax of the rewards (ROPG-KD), or the expected reward (ROPG-RL)."""
    reward: Literal["metric", "likelihood"] = "metric"
    """Reward in the feedback: the task's metric (LaMP-3: Eq. 8), or the reference's log-probability."""
    profile_size: int = 16
    """Number of items per question, from the first."""
    use_date: bool = True
    """Append ` date: ...` to documents; recorded with the encoder, so that ranking does the same."""
    score_temperature: float = 1.0
    """`kd`: temperature that divides scores."""
    reward_temperature: float = 1.0
    """`kd`: temperature that divides rewards."""
    gradient: Literal["sampled", "expected"] = "sampled"
    """`rl`: REINFORCE with sampled items, or the exact expectation over all items."""
    sampled_items: int = 1
    """`rl`: number of items sampled per question, without replacement."""


@dataclass(frozen=True, kw_only=True)
class RetrieverTraining(Ropg):
    """Settings of training a dual encoder on a generator's feedback."""

    scratch: ScratchEncoder = ScratchEncoder()
    held_out: float = 0.1
    """Fraction of the questions that is held out for validation if there is no validation file."""
    reward_at: int = 4
    """Number of top-ranked items whose mean reward selects the best checkpoint."""
    max_length: int | None = None
    """Maximum length of queries and documents in tokens, special tokens included; default: that of the encoder's files,
    or 512 for a new encoder and with `--ropg padded` (the public code's two lengths)."""
    encoding: Encoding = Encoding()
    learning: Learning = Learning(learning_rate=1e-5, weight_decay=0.0, batch_size=64, accumulation=8)
    seed: int = 0
    """Random seed of initialization, dropout, sampled items, the order of questions and held-out questions."""
    compatibility: Compatibility = CORRECT


@dataclass(frozen=True, kw_only=True)
class AdapterTraining:
    """Settings of training users' adapters."""

    shared: Literal["no", "profiles", "questions"] = "no"
    """Train one adapter for all users instead: on all users' profiles, or on the questions and references without
    profiles (adapted to the task, not to users)."""
    users_per_step: int = 64
    """Number of users trained at the same time, over all devices."""
    tokens_per_device: int = 4096
    """Maximum number of tokens per device and microbatch, padding included; an update takes as many microbatches as
    necessary."""
    lora: Lora = Lora()
    learning: Optimization = Optimization(epochs=30.0)
    seed: int = 0
    """Random seed of initialization, the order of examples, dropout and the split points of LaMP-7's tweets."""
    profiles: Profiles = "single"
    """Training data of a user with several questions."""
    max_length: int = 512
    """Maximum input length in tokens, `</s>` included."""
    target_length: int = 512
    """Maximum answer length in tokens, `</s>` included."""
    keep: Literal["float32", "bfloat16"] = "float32"
    """Data type of the adapters in the store."""
    storage: Storage = "float32"
    """Data type of the base model's matrices in memory."""
    compatibility: Compatibility = CORRECT
