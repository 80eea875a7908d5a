"""The commands that train a selector and choose by it."""

from dataclasses import dataclass
from typing import Literal

from lamp_jax.config import Learning, ScratchEncoder, SelectorMetric, SelectorMode
from lamp_jax.options.shared import Compatible, Computes, Writes


@dataclass(frozen=True)
class SelectorData(Writes, Compatible):
    """Write what a selector learns from: each question's candidates, one for each retriever, and their rewards."""

    feedback: str
    """Directory of `lamp feedback retrievers`."""
    questions: str
    """The questions on which the feedback was made, or some of them."""
    output: str
    """The candidates, JSON; the retrievers' names and order are inside."""
    golds: str = ""
    """Outputs file, where the questions do not hold their golds; without any there are no rewards."""
    metric: SelectorMetric | None = None
    """Which metric of the feedback is the reward (MAE by Eq. 8 of the paper); not given: the task's main one."""
    scores: tuple[str, ...] = ()
    """`NAME=FILE` for retrievers of the pool: the scores of their rankings, of which retrieval's success is predicted
    (WIG, NQC, sigma-max, sigma-50)."""
    predictor_items: int = 4
    """How many of the first items WIG and NQC look at."""


@dataclass(frozen=True)
class ScratchSelector(ScratchEncoder):
    """The size of a selector that is trained from scratch (`--model scratch`); Longformer's architecture."""

    attention_window: int = 512
    """Tokens around a token that it reads, half of them on either side."""


@dataclass(frozen=True)
class TrainSelector(Writes, Compatible, Computes):
    """Train a model to choose a question's retriever: RSPG-Pre or RSPG-Post."""

    train: str
    """Candidates with rewards, of `lamp selector-data`."""
    validation: str
    """Candidates with rewards by which the best checkpoint is chosen."""
    output: str
    """Directory of the run: a Hugging Face model directory, beside it logs and the checkpoint for resuming."""
    mode: SelectorMode = "post"
    """What is read: the prompt with a retriever's items (RSPG-Pre), or that and the answer to it (RSPG-Post)."""
    model: str = "allenai/longformer-base-4096"
    """Model directory or hub name to start from; `scratch` for a new model of the size below."""
    scratch: ScratchSelector = ScratchSelector()
    temperature: float = 1.0
    """What scores and rewards are divided by."""
    max_length: int | None = None
    """Longest text in tokens, special tokens included; not given: 1024 (with `--selector-cut end`: 512)."""
    learning: Learning = Learning(epochs=20, learning_rate=1e-5, weight_decay=0.0, batch_size=64, accumulation=8)
    seed: int = 0
    """Seed of initialisation, dropout and order of questions."""


@dataclass(frozen=True)
class Select(Writes, Compatible, Computes):
    """Choose each question's retriever, and with it the answer; where golds are known, also score the choice."""

    data: str
    """Candidates, of `lamp selector-data`."""
    output: str
    """Predictions in the official format, the retriever's name beside each; `.scores.json` where golds are known."""
    selector: str = ""
    """Directory of `lamp train-selector`."""
    by: Literal["selector", "best", "worst", "wig", "nqc", "sigma-max", "sigma-50"] = "selector"
    """Who chooses: the selector; the rewards, which is the bound from above or below; or a prediction of retrieval's
    success."""
    pool: tuple[str, ...] = ()
    """The retrievers among which to choose; none named: all of the data."""
    train: str = ""
    """Candidates on which the predictions of each retriever are standardised; empty: they are compared as they are."""
    batch_tokens: int | None = None
    """Tokens in one batch, padding included, over all devices; not given: as many as keep them busy."""
