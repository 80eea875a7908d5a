"""Paths of a benchmark's files: on its site, in a downloaded tree, in a directory of `lamp build`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from lamp_jax.config import Part, Split
from lamp_jax.errors import LampError
from lamp_jax.tasks.catalog import Task

FileKind = Literal["questions", "outputs"]
PARTS: tuple[Part, ...] = ("train", "dev", "test")
SITE = "https://ciir.cs.umass.edu/downloads/LaMP"


@dataclass(frozen=True)
class TreeFile:
    """One file of the benchmark. Test parts have no outputs."""

    task: Task
    split: Split
    part: Part
    kind: FileKind

    @property
    def name(self) -> str:
        return f"{self.part}_{self.kind}.json"

    @property
    def path(self) -> PurePosixPath:
        """Relative path on the site and in a downloaded tree."""
        start = PurePosixPath("time" if self.split == "time" else "")
        return start / self.task.tree_folder / self.part / self.name

    @property
    def count(self) -> int | None:
        """Published number of records; None where none was published."""
        return self.task.counts.of(self.split)[PARTS.index(self.part)]


def benchmark_files(task: Task, split: Split, parts: Iterable[Part] = PARTS) -> Iterator[TreeFile]:
    """Files that the benchmark offers for a task."""
    for part in parts:
        yield TreeFile(task, split, part, "questions")
        if part != "test":
            yield TreeFile(task, split, part, "outputs")


def find_part(root: str | Path, task: Task, split: Split, part: Part) -> tuple[Path, Path | None] | None:
    """Paths of a part's questions and outputs (None where there are none); None where the tree has no such part.

    Looks in the directories of a download (`[time/]LaMP_3/train/train_questions.json`), then in the task's folder and
    in `root` itself, where `lamp build` and `lamp synth` write all files.
    """
    questions, outputs = (TreeFile(task, split, part, kind) for kind in ("questions", "outputs"))
    home = Path(root) / questions.path.parent
    for folder in (home, home.parent, Path(root) / task.official_name, Path(root)):
        if (folder / questions.name).is_file():
            references = folder / outputs.name
            return folder / questions.name, references if references.is_file() else None
    return None


def find_parts(root: str | Path, task: Task, split: Split) -> dict[Part, tuple[Path, Path | None]]:
    """Paths of all parts of a task in a tree. LampError where there are none."""
    found: dict[Part, tuple[Path, Path | None]] = {}
    for part in PARTS:
        if files := find_part(root, task, split, part):
            found[part] = files
    if not found:
        expected = Path(root) / TreeFile(task, split, "train", "questions").path
        raise LampError(
            f"{root}: no questions of {task.name}, {split} split; looked for {expected} and in the directories near it"
        )
    return found
