"""Options of the commands that rank profiles, merge rankings with questions and write prompts."""

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
    """Write the exact prompts of a generator, one `{id, prompt}` per line."""

    task: str
    """Task, e.g. LaMP-3."""
    merged: str
    """Questions, official or merged."""
    tokenizer: str
    """Model directory or hub name of the generator, for its tokenizer."""
    output: str
    """JSON lines file of the prompts."""
    retriever: ChosenRetriever = "file"
    seed: int = 0
    """Random seed of the `random` retriever."""
    prompting: Prompting = Prompting()


@dataclass(frozen=True)
class Rank(Writes, Compatible):
    """Rank every question's profile, best first: `{question id: [item id, ...]}`."""

    output: str
    """Ranking file; with `--all`, the directory of all rankings and merged files."""
    task: str = ""
    """Task, e.g. LaMP-3."""
    questions: str = ""
    """Questions, official or merged."""
    all: str = ""
    """Instead of `--task` and `--questions`: a tree written by `lamp download` or `lamp build`, whose files are all
    ranked and merged."""
    split: Split = "user"
    """Split of the tree that `--all` ranks; `best` depends on it."""
    tasks: tuple[str, ...] = ()
    """Tasks that `--all` ranks; default: all in the tree."""
    plan: bool = False
    """Print the jobs of `--all` with an estimate of the time, and run none."""
    ranker: Annotated[RankerName | Literal["best"] | None, arg(help=_RANKERS)] = None
    encoder: str = "facebook/contriever"
    """Model directory or hub name of the encoder of `dense`."""
    embeddings_cache: str = ""
    """Directory that caches the vectors of `dense` between runs; empty: no cache."""
    max_length: int | None = None
    """Maximum length of queries and documents of `dense` in tokens, special tokens included; default: that of the
    encoder's files or training."""
    encoding: Encoding = Encoding()
    scores: str = ""
    """Also write the items' scores to this file, `{question id: [score, ...]}` in the ranking's order, for `lamp
    selector-data`; those of `recency` and `random` are reciprocal ranks."""
    batch_tokens: int | None = None
    """Tokens per batch of `dense`, padding included, over all devices; default: enough to keep the devices busy."""
    rankings: tuple[str, ...] = ()
    """Two or more ranking files that `rrf` fuses."""
    rrf_k: float = 60.0
    """Constant of `rrf`: an item's score is the sum of 1 / (k + rank) over the rankings."""
    bm25_variant: Literal["okapi", "lucene"] = "okapi"
    """Scoring of `bm25`: rank_bm25's Okapi, which the papers used, or Lucene's, whose idf is never negative."""
    use_date: bool = False
    """Append ` date: ...` to documents. For an encoder trained by lamp, its recorded setting applies."""
    seed: int = 0
    """Random seed of `random`."""
    work: Work = Work()
    devices: Devices = Devices(cpu_devices=0)


@dataclass(frozen=True)
class Merge(Writes, Compatible):
    """Sort profiles by a ranking, and add references to the questions."""

    questions: str
    """Questions file."""
    output: str
    """File of the merged questions."""
    outputs: str = ""
    """Outputs file with the references, official or a plain list; empty for test questions."""
    ranking: str = ""
    """Ranking file of `lamp rank`; empty: the profiles keep their order."""
    work: Work = Work()
