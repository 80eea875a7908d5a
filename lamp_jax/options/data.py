"""Options of the commands that download, build, check and convert datasets."""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from lamp_jax.config import Part, Split, Work
from lamp_jax.datasets.form import BenchmarkForm
from lamp_jax.options.shared import Compatible, Writes


@dataclass(frozen=True)
class Download:
    """Download the benchmark's files into the folders of its site; complete files are not downloaded again."""

    output: str
    """Directory of the downloaded tree, for all tasks and both splits."""
    tasks: tuple[str, ...] = ()
    """Tasks; default: LaMP-1 to LaMP-7 (LaMP-6 has ids only: see `lamp avocado`)."""
    split: Split = "user"
    """User-based or time-based separation."""
    parts: tuple[Part, ...] = ("train", "dev", "test")
    """Files of each task to download."""
    mirrors: tuple[str, ...] = ()
    """URLs of mirrors of the tree, tried in this order before the benchmark's own."""
    connections: int = 4
    """Number of concurrent downloads."""
    attempts: int = 5
    """Consecutive attempts without progress before a URL is given up."""
    timeout: float = 60.0
    """Seconds without data before a connection is closed."""
    verify: bool = False
    """Download nothing: check every file against the download manifest (size, SHA-256) and as JSON."""


@dataclass(frozen=True)
class Avocado(Writes):
    """Write LaMP-6 from the licensed Avocado archives (LDC2015T03) and the benchmark's id files."""

    archives: str
    """Directory of the zip files, `avocado-1.0.2/data/text`; they are read without being extracted."""
    ids: str
    """Directory of the id files `{train,dev,test}_questions.json`, directly or in folders `train`, `dev`, `test`."""
    output: str
    """Directory of the LaMP-6 files."""
    replies: Literal["keep", "strip"] = "keep"
    """Quoted earlier mails in a body: kept, as in the benchmark, or removed."""
    missing: Literal["stop", "drop"] = "stop"
    """Mails that are in no archive: `stop` lists them in an error, `drop` leaves out their items and questions and
    lists them."""
    work: Work = Work()


@dataclass(frozen=True, kw_only=True)
class Build(BenchmarkForm, Writes):
    """Build a benchmark in LaMP's format from users' histories."""

    output: str
    """Directory of the files and of `report.json`, which lists what was dropped and why."""


@dataclass(frozen=True)
class Tfds(Writes, Compatible):
    """Write a tree of LaMP files as a TensorFlow dataset (array_record), each distinct profile once."""

    data: str
    """Directory written by `lamp download` or `lamp build`."""
    task: str
    """Task, e.g. LaMP-3."""
    output: str
    """Directory of datasets, the `data_dir` of `tfds.builder`."""
    split: Split = "user"
    """Split of the tree to convert."""
    work: Work = Work()


@dataclass(frozen=True)
class Check:
    """Validate LaMP files and summarize their contents; the exit status is 1 for errors, 0 for warnings only."""

    files: Positional[tuple[str, ...]]
    """Questions, merged questions, outputs, predictions or rankings."""
    task: str = ""
    """Task of all files; empty: inferred for each file from its inputs or its name."""
    output: str = ""
    """JSON file of all findings."""
    work: Work = Work()


@dataclass(frozen=True)
class Synth(Writes):
    """Write a synthetic benchmark whose relevant items are known: train and dev files, and `oracle.json`."""

    task: str
    """Task, e.g. LaMP-3."""
    output: str
    """Directory of the files."""
    questions: int = 2000
    """Number of train questions."""
    dev_questions: int = 0
    """Number of dev questions; 0: a tenth of the train questions, at least 200."""
    profile_size: int = 20
    """Mean number of profile items."""
    profile_sizes: tuple[int, int] | None = None
    """Smallest and largest number of profile items, log-uniformly distributed, instead of the mean: as many users have
    2 to 4 items as 50 to 100."""
    words: int = 0
    """Number of words per text; 0: the demo's short texts of 7 to 10 words."""
    seed: int = 0
    """Random seed."""
