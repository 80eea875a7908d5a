"""The commands that make, check and convert files of questions."""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from lamp_jax.config import Part, Split, Work
from lamp_jax.datasets.form import BenchmarkForm
from lamp_jax.options.shared import Compatible, Writes


@dataclass(frozen=True)
class Download:
    """Fetch the benchmark's files, into the folders that they have at its site; what is whole is not fetched again."""

    output: str
    """Directory of the tree, for all tasks and both splits."""
    tasks: tuple[str, ...] = ()
    """Tasks; none named: LaMP-1 to LaMP-7 (of LaMP-6 there are ids only: see `lamp avocado`)."""
    split: Split = "user"
    """The user-based or the time-based separation."""
    parts: tuple[Part, ...] = ("train", "dev", "test")
    """Parts of a task's files."""
    mirrors: tuple[str, ...] = ()
    """Addresses that hold the same tree, asked before the benchmark's own, in this order."""
    connections: int = 4
    """Files that are fetched at the same time."""
    attempts: int = 5
    """Attempts in a row that bring nothing new, after which an address is given up."""
    timeout: float = 60.0
    """Seconds without a byte after which a connection is given up."""
    verify: bool = False
    """Fetch nothing: check every file of the tree against what was recorded when it came (size, SHA-256, JSON)."""


@dataclass(frozen=True)
class Avocado(Writes):
    """Write LaMP-6 from the licensed Avocado archives (LDC2015T03) and the benchmark's id files."""

    archives: str
    """Directory of the zips, `avocado-1.0.2/data/text`; they are read where they lie."""
    ids: str
    """Directory of the id files: `{train,dev,test}_questions.json`, there or in folders `train`, `dev`, `test`."""
    output: str
    """Directory of the LaMP-6 files."""
    replies: Literal["keep", "strip"] = "keep"
    """Quoted earlier mails in a body: as the benchmark has them, or without."""
    missing: Literal["stop", "drop"] = "stop"
    """Mails that no archive has: an error that lists them; or their items and questions are left out, and listed."""
    work: Work = Work()


@dataclass(frozen=True, kw_only=True)
class Build(BenchmarkForm, Writes):
    """Make a benchmark in LaMP's format of any users' histories."""

    output: str
    """Directory of the files, and of `report.json`: what was dropped and why."""


@dataclass(frozen=True)
class Tfds(Writes, Compatible):
    """Write a tree of LaMP files as a TensorFlow dataset (array_record), each distinct profile once."""

    data: str
    """A tree of `lamp download` or `lamp build`."""
    task: str
    """Task, e.g. LaMP-3."""
    output: str
    """Directory of data sets, `data_dir` of `tfds.builder`."""
    split: Split = "user"
    """Which part of the tree."""
    work: Work = Work()


@dataclass(frozen=True)
class Check:
    """Validate LaMP files and print what is in them; exit status 1 for errors, 0 for warnings."""

    files: Positional[tuple[str, ...]]
    """Questions, merged questions, outputs, predictions or rankings."""
    task: str = ""
    """Task of all files; empty: each file's own, told by its inputs or its name."""
    output: str = ""
    """File to which everything that was found goes as JSON."""
    work: Work = Work()


@dataclass(frozen=True)
class Synth(Writes):
    """Write a benchmark whose right items are known: train and dev files, and `oracle.json`."""

    task: str
    """Task, e.g. LaMP-3."""
    output: str
    """Directory of the files."""
    questions: int = 2000
    """Train questions."""
    dev_questions: int = 0
    """Dev questions; 0 is a tenth as many as train questions, at least 200."""
    profile_size: int = 20
    """Mean number of profile items."""
    profile_sizes: tuple[int, int] | None = None
    """In place of the mean, the smallest and the largest number, evenly spread by their logarithms: as many users have
    2 to 4 items as have 50 to 100."""
    words: int = 0
    """Words of a text; 0 for the short texts of the demo, 7 to 10 words."""
    seed: int = 0
    """Seed."""
