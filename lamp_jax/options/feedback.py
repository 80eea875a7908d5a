"""Options of the commands that collect a generator's feedback."""

from dataclasses import dataclass
from typing import Literal

from lamp_jax.config import Answering, Prompting, Work
from lamp_jax.options.shared import Compatible, Computes, Writes


@dataclass(frozen=True)
class FeedbackItems(Writes, Compatible, Computes):
    """Answer each question once per top item, with that item alone in the prompt, and score the answers."""

    task: str
    """Task, e.g. LaMP-3."""
    merged: str
    """Questions with references; profiles in the order of the retriever whose top items get feedback."""
    model: str
    """Model directory or hub name of the generator."""
    output: str
    """Directory of the feedback: one JSON record for each question and item."""
    profile_size: int = 16
    """Number of items per question, from the top of the profile."""
    reward: Literal["metric", "likelihood"] = "metric"
    """Reward: the task's metrics of the generated answer, or the mean log-probability of the reference's tokens."""
    batch_size: int = 16
    """Question-item pairs per batch, over all devices."""
    max_length: int = 512
    """Maximum prompt length in tokens, `</s>` included."""
    answering: Answering = Answering()
    export_reference: str = ""
    """Also write the public code's file, `{"qid-pid": {metric: value}}`."""
    shards: int = 1
    """Number of independent runs that share the questions and the output directory."""
    shard: int = 0
    """Index of this run, from 0."""
    work: Work = Work()


@dataclass(frozen=True)
class FeedbackRetrievers(Writes, Compatible, Computes):
    """Answer each question once per retriever of a pool, with that retriever's items, and score the answers."""

    task: str
    """Task, e.g. LaMP-3."""
    pool: tuple[str, ...]
    """Two or more retrievers: `NAME=FILE`, where FILE has the questions merged with that retriever's ranking; `none` is
    the bare input."""
    model: str
    """Model directory or hub name of the generator."""
    output: str
    """Directory of the feedback: one JSON record for each question and retriever."""
    prompting: Prompting = Prompting()
    batch_size: int = 16
    """Prompts per batch, over all devices."""
    answering: Answering = Answering()
    shards: int = 1
    """Number of independent runs that share the questions and the output directory."""
    shard: int = 0
    """Index of this run, from 0."""
    work: Work = Work()
