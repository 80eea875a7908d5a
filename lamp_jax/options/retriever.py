"""Options of the command that trains a retriever on feedback."""

from dataclasses import dataclass

from lamp_jax.options.shared import Computes, Writes
from lamp_jax.settings import RetrieverTraining


@dataclass(frozen=True)
class TrainRetriever(RetrieverTraining, Writes, Computes):
    """Train a dense retriever on a generator's feedback: ROPG-KD or ROPG-RL."""

    task: str
    """Task, e.g. LaMP-3."""
    questions: str
    """Questions with references on which the feedback was collected, with profiles in the same order."""
    feedback: tuple[str, ...]
    """Directories written by `lamp feedback items`, or files in the public code's format."""
    output: str
    """Output directory: a Hugging Face encoder directory with logs and checkpoints for resuming."""
    encoder: str = "facebook/contriever"
    """Model directory or hub name of the initial encoder; `scratch` for a new encoder of the size of `scratch`."""
    validation: str = ""
    """Validation questions, which select the best checkpoint; empty: a fraction of the questions is held out."""
    validation_feedback: tuple[str, ...] = ()
    """Feedback on the validation questions."""
