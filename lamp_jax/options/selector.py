"""Options of the commands that train and apply a selector."""

from dataclasses import dataclass
from typing import Literal

from lamp_jax.config import Learning, ScratchEncoder, SelectorMetric, SelectorMode
from lamp_jax.options.shared import Compatible, Computes, Writes


@dataclass(frozen=True)
class SelectorData(Writes, Compatible):
    """Write a selector's training data: for each question one candidate per retriever, with rewards."""

    feedback: str
    """Directory written by `lamp feedback retrievers`."""
    questions: str
    """Questions on which the feedback was collected, or a subset of them."""
    output: str
    """JSON file of the candidates, with the retrievers' names in order."""
    golds: str = ""
    """Outputs file with the references, if the questions file has none; without references there are no rewards."""
    metric: SelectorMetric | None = None
    """Metric of the feedback that is the reward (MAE by Eq. 8 of arXiv 2404.05970); default: the task's main metric."""
    scores: tuple[str, ...] = ()
    """`NAME=FILE` for retrievers of the pool: scores of their rankings, for query performance prediction (WIG, NQC,
    sigma-max, sigma-50)."""
    predictor_items: int = 4
    """Number of top items that WIG and NQC use."""


@dataclass(frozen=True)
class ScratchSelector(ScratchEncoder):
    """Size of a selector trained from scratch (`--model scratch`), with Longformer's architecture."""

    attention_window: int = 512
    """Size of the local attention window in tokens, half on either side."""


@dataclass(frozen=True)
class TrainSelector(Writes, Compatible, Computes):
    """Train a selector of retrievers: RSPG-Pre or RSPG-Post."""

    train: str
    """Candidates with rewards, written by `lamp selector-data`."""
    validation: str
    """Candidates with rewards; the best checkpoint is selected on them."""
    output: str
    """Output directory: a Hugging Face model directory with logs and checkpoints for resuming."""
    mode: SelectorMode = "post"
    """Input of the selector: the prompt with a retriever's items (RSPG-Pre), or the prompt and its answer
    (RSPG-Post)."""
    model: str = "allenai/longformer-base-4096"
    """Model directory or hub name of the initial model; `scratch` for a new model of the size below."""
    scratch: ScratchSelector = ScratchSelector()
    temperature: float = 1.0
    """Temperature that divides scores and rewards."""
    max_length: int | None = None
    """Maximum input length in tokens, special tokens included; default: 1024 (512 with `--selector-cut end`)."""
    learning: Learning = Learning(epochs=20, learning_rate=1e-5, weight_decay=0.0, batch_size=64, accumulation=8)
    seed: int = 0
    """Random seed of initialization, dropout and the order of questions."""


@dataclass(frozen=True)
class Select(Writes, Compatible, Computes):
    """Select a retriever, and with it an answer, for each question; with references, also score the answers."""

    data: str
    """Candidates, written by `lamp selector-data`."""
    output: str
    """Prediction file in the official format, with the selected retriever of each question; with references,
    `.scores.json` is written beside it."""
    selector: str = ""
    """Directory written by `lamp train-selector`."""
    by: Literal["selector", "best", "worst", "wig", "nqc", "sigma-max", "sigma-50"] = "selector"
    """Criterion: the selector; the rewards (`best` and `worst`, the upper and lower bounds); or query performance
    prediction."""
    pool: tuple[str, ...] = ()
    """Retrievers to select from; default: all in the data."""
    train: str = ""
    """Candidates on which each retriever's predictors are standardized; empty: not standardized."""
    batch_tokens: int | None = None
    """Tokens per batch, padding included, over all devices; default: enough to keep the devices busy."""
