"""The command that trains a retriever on feedback."""

from dataclasses import dataclass

from lamp_jax.options.shared import Computes, Writes
from lamp_jax.settings import RetrieverTraining


@dataclass(frozen=True)
class TrainRetriever(RetrieverTraining, Writes, Computes):
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
    """Model directory or hub name to start from; `scratch` for a new encoder of the size that `scratch` has."""
    validation: str = ""
    """Questions by whose feedback the best checkpoint is chosen; empty: a part of the questions is held out."""
    validation_feedback: tuple[str, ...] = ()
    """Their feedback."""
