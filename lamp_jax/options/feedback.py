"""The commands that ask a generator for feedback."""

from dataclasses import dataclass
from typing import Literal

from lamp_jax.config import Answering, Prompting
from lamp_jax.options.shared import Compatible, Computes, Writes


@dataclass(frozen=True)
class FeedbackItems(Writes, Compatible, Computes):
    """Ask a model each question once with each of its top items, alone in the prompt, and score the answers."""

    task: str
    """Task, e.g. LaMP-3."""
    merged: str
    """Questions with golds, profiles in the order of the retriever whose top items are asked about."""
    model: str
    """Model directory or hub name of the generator."""
    output: str
    """Directory of the feedback: one JSON record for each question and item."""
    profile_size: int = 16
    """Items of each question, from the first on."""
    reward: Literal["metric", "likelihood"] = "metric"
    """What is measured: the task's metrics of a generated answer, or the mean log-probability of the gold's tokens."""
    batch_size: int = 16
    """Pairs of question and item in one batch, over all devices."""
    max_length: int = 512
    """Longest prompt, in tokens, `</s>` included."""
    answering: Answering = Answering()
    export_reference: str = ""
    """Also write the public code's file, `{"qid-pid": {metric: value}}`."""
    shards: int = 1
    """Runs, on machines of their own, that share the questions and the output directory."""
    shard: int = 0
    """Which of them this is, from 0."""


@dataclass(frozen=True)
class FeedbackRetrievers(Writes, Compatible, Computes):
    """Ask a model each question once with the items of each retriever of a pool, and score the answers."""

    task: str
    """Task, e.g. LaMP-3."""
    pool: tuple[str, ...]
    """The retrievers, two or more: `NAME=FILE`, questions with their profiles in that retriever's order (merged); and
    `none`, the bare input."""
    model: str
    """Model directory or hub name of the generator."""
    output: str
    """Directory of the feedback: one JSON record for each question and retriever."""
    prompting: Prompting = Prompting()
    batch_size: int = 16
    """Prompts in one batch, over all devices."""
    answering: Answering = Answering()
    shards: int = 1
    """Runs, on machines of their own, that share the questions and the output directory."""
    shard: int = 0
    """Which of them this is, from 0."""
