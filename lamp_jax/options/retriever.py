"""The command that trains a retriever on feedback."""

from dataclasses import dataclass

from lamp_jax.config import Encoding, Learning, Ropg, ScratchEncoder
from lamp_jax.options.shared import Compatible, Computes, Writes


@dataclass(frozen=True)
class TrainRetriever(Ropg, Writes, Compatible, Computes):
    """Train a dense retriever on a generator's feedback: ROPG-KD or ROPG-RL."""

    task: str
    """Task, e.g. LaMP-3."""
    questions: str
    """The questions with golds on which the feedback was made, profiles in the same order."""
    feedback: tuple[str, ...]
    """Directories of `lamp feedback items`, or files of the public code's form."""
    output: str
    """Directory of the run: a Hugging Face encoder directory, beside it logs and the checkpoint for resuming."""
    encoder: str = "facebook/contriever"
    """Model directory or hub name to start from; `scratch` for a new encoder of the size below."""
    scratch: ScratchEncoder = ScratchEncoder()
    validation: str = ""
    """Questions by whose feedback the best checkpoint is chosen; empty: a part of the questions is held out."""
    validation_feedback: tuple[str, ...] = ()
    """Their feedback."""
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
