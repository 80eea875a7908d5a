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
    """Layers of the encoder."""
    num_decoder_layers: int = 2
    """Layers of the decoder."""
    num_heads: int = 4
    """Attention heads, each of size d_model / num_heads."""
    vocab_size: int = 4096
    """Vocabulary size of the tokenizer, which is trained on the prompts and answers of the train file."""
    dropout: float = 0.1
    """Dropout rate."""


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """How prompts are built."""

    prompting: Prompting = Prompting()
    seed: int = 0
    """Seed of the `random` retriever."""
    compatibility: Compatibility = CORRECT


@dataclass(frozen=True, kw_only=True)
class GeneratorTraining:
    """How a generator is trained on prompts and answers."""

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
    """How a retriever learns from feedback on items (arXiv 2404.05970, section 4.1)."""

    method: Literal["kd", "rl"] = "kd"
    """Learn the softmax of the rewards (ROPG-KD), or raise the expected reward (ROPG-RL)."""
    reward: Literal["metric", "likelihood"] = "metric"
    """Which part of the feedback is the reward: the task's metric (LaMP-3: Eq. 8), or the gold's log-probability."""
    profile_size: int = 16
    """Items of each question, from the first on."""
    use_date: bool = True
    """Whether documents end in ` date: ...`; stored beside the encoder, so that ranking does the same."""
    score_temperature: float = 1.0
    """`kd`: what scores are divided by."""
    reward_temperature: float = 1.0
    """`kd`: what rewards are divided by."""
    gradient: Literal["sampled", "expected"] = "sampled"
    """`rl`: REINFORCE with sampled items, or the exact expectation over all items."""
    sampled_items: int = 1
    """`rl`: items drawn for a question, without replacement."""


@dataclass(frozen=True, kw_only=True)
class RetrieverTraining(Ropg):
    """How a dual encoder is trained on a generator's feedback."""

    scratch: ScratchEncoder = ScratchEncoder()
    held_out: float = 0.1
    """Share of the questions that is held out where there is no validation file."""
    reward_at: int = 4
    """The best checkpoint has the highest mean reward of the K items that it ranks first."""
    max_length: int | None = None
    """Longest query and document, in tokens, special tokens included; not given: as the encoder's files say, 512 for a
    new encoder and with `--ropg padded` (the public code's two lengths)."""
    encoding: Encoding = Encoding()
    learning: Learning = Learning(learning_rate=1e-5, weight_decay=0.0, batch_size=64, accumulation=8)
    seed: int = 0
    """Seed of initialisation, dropout, sampled items, order of questions and of what is held out."""
    compatibility: Compatibility = CORRECT


@dataclass(frozen=True, kw_only=True)
class AdapterTraining:
    """How users' adapters are trained."""

    shared: Literal["no", "profiles", "questions"] = "no"
    """One adapter for everybody instead: of all users' profiles, or of the questions and golds without profiles (a
    model that knows the task and no user)."""
    users_per_step: int = 64
    """Users who learn at the same time, over all devices."""
    tokens_per_device: int = 4096
    """Tokens, padding included, that a device computes at once; an update is computed in as many parts as it takes."""
    lora: Lora = Lora()
    learning: Optimization = Optimization(epochs=30.0)
    seed: int = 0
    """Seed of the adapters' first values, of the order of examples, of dropout and of where LaMP-7's tweets are cut."""
    profiles: Profiles = "single"
    """Training data of a user with several questions."""
    max_length: int = 512
    """Longest input, in tokens, `</s>` included."""
    target_length: int = 512
    """Longest answer, in tokens, `</s>` included."""
    keep: Literal["float32", "bfloat16"] = "float32"
    """Data type of the adapters in the store."""
    storage: Storage = "float32"
    """Data type of the base model's matrices in memory."""
    compatibility: Compatibility = CORRECT
