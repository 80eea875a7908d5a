"""The commands that rank profiles and write prompts."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from lamp_jax.config import Devices, Encoding, Prompting, Split, Work
from lamp_jax.options.shared import ChosenRetriever, Compatible, Writes
from lamp_jax.retrieval.rankers import RANKERS, RankerName, describe

_RANKERS = (
    f"Ranking method. {describe(RANKERS.values())}; `best`: the papers' choice for the task. "
    "Default: `bm25`, with `--all` `best`."
)


@dataclass(frozen=True)
class Prompts(Writes, Compatible):
    """Write exactly what a generator would read, one `{id, prompt}` a line."""

    task: str
    """Task, e.g. LaMP-3."""
    merged: str
    """Questions, official or merged."""
    tokenizer: str
    """Directory or hub name of the model whose tokenizer counts the tokens."""
    output: str
    """JSON lines."""
    retriever: ChosenRetriever = "file"
    seed: int = 0
    """Seed of the `random` retriever."""
    prompting: Prompting = Prompting()


@dataclass(frozen=True)
class Rank(Writes, Compatible):
    """Rank every question's profile, best first: `{question id: [item id, ...]}`."""

    output: str
    """Ranking file; with `--all` the directory of all rankings and merged files."""
    task: str = ""
    """Task, e.g. LaMP-3."""
    questions: str = ""
    """Questions, official or merged."""
    all: str = ""
    """Instead of `--task` and `--questions`: a tree of `lamp download` or `lamp build`, of which every file is ranked
    and merged."""
    split: Split = "user"
    """Which part of the tree `--all` takes, and for which `best` is meant."""
    tasks: tuple[str, ...] = ()
    """Tasks that `--all` takes; none named: all that are there."""
    plan: bool = False
    """Only print what `--all` would do, and an estimate of the time."""
    ranker: Annotated[RankerName | Literal["best"] | None, arg(help=_RANKERS)] = None
    encoder: str = "facebook/contriever"
    """Model directory or hub name of the encoder of `dense`."""
    embeddings_cache: str = ""
    """Directory where `dense` keeps its vectors for the next run; empty: nowhere."""
    max_length: int | None = None
    """Longest query and document that `dense` reads, in tokens, special tokens included; not given: as the encoder's
    files say, or was trained."""
    encoding: Encoding = Encoding()
    scores: str = ""
    """File to which the items' scores go, `{question id: [score, ...]}` in the ranking's order; `recency` and `random`
    have reciprocal ranks. `lamp selector-data` reads it."""
    batch_tokens: int | None = None
    """Tokens in one batch of `dense`, padding included, over all devices; not given: as many as keep them busy."""
    rankings: tuple[str, ...] = ()
    """Rankings that `rrf` fuses, two or more."""
    rrf_k: float = 60.0
    """Constant of `rrf`: an item's score is the sum of 1 / (k + rank) over the rankings."""
    bm25_variant: Literal["okapi", "lucene"] = "okapi"
    """Scoring of `bm25`: rank_bm25's Okapi, which the papers used, or Lucene's, whose idf is never negative."""
    use_date: bool = False
    """Whether documents end in ` date: ...`. An encoder that lamp trained knows how it was trained."""
    seed: int = 0
    """Seed of `random`."""
    work: Work = Work()
    devices: Devices = Devices(cpu_devices=0)


@dataclass(frozen=True)
class Merge(Writes, Compatible):
    """Put profiles in the order of a ranking, and golds beside their questions."""

    questions: str
    """Questions."""
    output: str
    """Merged questions."""
    outputs: str = ""
    """Golds, official or a plain list; leave out for test questions."""
    ranking: str = ""
    """Ranking of `lamp rank`; leave out to keep the profiles' order."""
    work: Work = Work()
