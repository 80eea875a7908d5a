"""Question sources: random access to the questions of a JSON file or of a data set of `lamp tfds`."""

import contextlib
import functools
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, get_args

import numpy as np

from lamp_jax.config import Split
from lamp_jax.data.files import Question, no_records, question_in
from lamp_jax.data.patches import ALL as ALL_PATCHES
from lamp_jax.data.patches import find_patches
from lamp_jax.errors import LampError
from lamp_jax.runs.json_files import encode
from lamp_jax.runs.json_records import RawRecord, RecordScanner, parse_record
from lamp_jax.tasks.catalog import Task

PROFILES = "profiles"
"""Name of the split of a data set that holds each distinct profile once."""


class QuestionSource(Protocol):
    """Questions by number; the interface that grain's `MapDataset.source` reads."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Question: ...

    def __iter__(self) -> Iterator[Question]: ...


class JsonSource:
    """Questions of an official file, in its order: indexed at once, each parsed when it is requested.

    Construction raises LampError where the file is not a list of records; reading a question raises it as
    stream_questions, but not for repeated ids. A source can be pickled.
    """

    def __init__(self, path: str | Path, task: Task | None = None, patches: Iterable[str] = ALL_PATCHES):
        self._path, self._task, self._patches = str(path), task, tuple(patches)
        find_patches(self._patches)
        bounds = ((offset, offset + len(raw)) for _, offset, raw in RecordScanner(path))
        flat = np.fromiter(itertools.chain.from_iterable(bounds), np.int64)
        self._starts, self._ends = flat[::2].copy(), flat[1::2].copy()
        if not len(flat):
            raise no_records(path)
        self._open()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int, /) -> Question:
        number = range(len(self))[index]
        start, end = int(self._starts[number]), int(self._ends[number])
        raw = os.pread(self._file.fileno(), end - start, start)  # No seek: grain reads in many threads.
        return question_in(RawRecord(number, start, raw), self._path, task=self._task, patches=self._patches)

    def __iter__(self) -> Iterator[Question]:
        return (self[number] for number in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            self._file.close()

    def _open(self) -> None:
        self._file = open(self._path, "rb")  # noqa: SIM115 (open for the life of the source)


class LampSource:
    """Questions of one part (`train`, `dev`, `test`) of a data set of `lamp tfds`, equal to those of the JSON file.

    `data` is the builder, or the directory of the data set (with `dataset_info.json`). Raises LampError for a missing
    data set or part. A source can be pickled.
    """

    def __init__(self, data: Any, part: str):
        self._directory, self._part = str(getattr(data, "data_dir", data)), part
        self._length = _count_questions(open_dataset(self._directory), self._directory, part)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int, /) -> Question:
        number = range(len(self))[index]
        with _naming_dataset(self._directory):
            questions, profiles = self._opened
            example = questions[number]
            return decode_question(example, profiles[example["profile"]]["items"])

    def __iter__(self) -> Iterator[Question]:
        return (self[number] for number in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    @functools.cached_property
    def _opened(self) -> tuple[Sequence[Any], Sequence[Any]]:
        builder = open_dataset(self._directory)
        return builder.as_data_source(self._part), builder.as_data_source(PROFILES)


def open_source(path: str | Path, task: Task, patches: Iterable[str] = ALL_PATCHES) -> QuestionSource:
    """Source of a JSON file, or of a part of a data set: `DIRECTORY/train`.

    DIRECTORY is that of the data set, or one that contains a single data set of the task, as that of
    `lamp tfds --output`. Raises LampError as JsonSource and LampSource, and for a data set of another task or with
    other patches.
    """
    path = Path(path)
    directory = None if path.exists() else _find_dataset(path.parent, task)
    if directory is None:
        return JsonSource(path, task, patches)
    metadata = open_dataset(directory).info.metadata
    if metadata["task"] != task.name:
        raise LampError(f"{directory}: a data set of {metadata['task']}, where {task.name} is expected")
    if set(metadata["patches"]) != set(patches):
        names = [", ".join(sorted(group)) or "none" for group in (metadata["patches"], patches)]
        raise LampError(
            f"{directory}: made with the patches {names[0]}, but the settings name {names[1]}; make another data "
            "set, or give the same --compatibility.patches"
        )
    return LampSource(directory, path.name)


def content_of(path: str | Path, task: Task) -> str:
    """File, or directory of the data set, that open_source reads for `path`."""
    directory = None if Path(path).exists() else _find_dataset(Path(path).parent, task)
    return str(directory or path)


def open_dataset(directory: str | Path) -> Any:
    """TFDS builder that reads the data set in `directory`. LampError where that is not a data set of `lamp tfds`."""
    import tensorflow_datasets as tfds

    if not Path(directory, "dataset_info.json").is_file():
        raise LampError(f"{directory}: not a data set (dataset_info.json is missing); make it with `lamp tfds`")
    with warnings.catch_warnings():
        # TFDS 4.9 calls what protobuf 6 deprecates.
        warnings.filterwarnings("ignore", message=r"label\(\) is deprecated", category=DeprecationWarning)
        with _naming_dataset(directory):
            builder = tfds.builder_from_directory(str(directory))
            name, metadata = builder.name, builder.info.metadata
    if name != "lamp":
        raise LampError(f"{directory}: a data set named {name!r}, not one of `lamp tfds`")
    facts = metadata if isinstance(metadata, Mapping) else {}
    patches = facts.get("patches")
    if not isinstance(facts.get("task"), str) or not isinstance(patches, list) or {*map(type, patches)} - {str}:
        raise LampError(f"{directory}: metadata.json names no task or no list of patches; {_REMEDY}")
    return builder


_REMEDY = "copy the data set again, or make it again with `lamp tfds --force`"


@contextlib.contextmanager
def _naming_dataset(directory: str | Path) -> Iterator[None]:
    """Context in which errors of TFDS and its libraries for damaged files, of any class, become LampError."""
    try:
        yield
    except LampError:
        raise
    except Exception as error:
        message = str(error).partition("\n")[0]
        raise LampError(
            f"{directory}: not a complete data set ({type(error).__name__}: {message:.200}); {_REMEDY}"
        ) from error


def _find_dataset(root: Path, task: Task) -> Path | None:
    """Directory of the data set: `root` itself, or the only data set of the task below it; None where there is none."""
    if (root / "dataset_info.json").is_file():
        return root
    names = [f"{task_config(task)}_{split}" for split in get_args(Split)]
    infos = [info for name in names for info in root.glob(f"lamp/{name}/[0-9]*/dataset_info.json")]
    if len(infos) > 1:
        found = ", ".join(str(info.parent) for info in infos)
        raise LampError(f"{root}: contains several data sets of {task.name}; give DIRECTORY/PART of one of {found}")
    return infos[0].parent if infos else None


def task_config(task: Task) -> str:
    """Name of a task in the names of data sets: `lamp_3` for LaMP-3."""
    return task.name.lower().replace("-", "_")


def _count_questions(builder: Any, directory: str, part: str) -> int:
    parts = [name for name in builder.info.splits if name != PROFILES]
    if part not in parts:
        raise LampError(f"{directory}: has no part {part!r}; there are {', '.join(parts)}")
    return builder.info.splits[part].num_examples


class StoredQuestion(NamedTuple):
    """Encoded question: its own fields, and its profile, which may be shared with others."""

    example: dict[str, bytes | None]
    items: bytes


def encode_question(question: Question) -> StoredQuestion:
    """Record of a question without the number of its profile, and the encoded profile.

    Profiles with the same items have the same bytes, whatever the items' ids and order. Texts are UTF-8; `user_id`,
    `order`, `item_ids` and the profile are JSON. An `output` of None is no reference, b"" an empty one.
    """
    texts = [encode({key: value for key, value in item.items() if key != "id"}) for item in question.profile]
    by_text = sorted(range(len(texts)), key=texts.__getitem__)
    order = np.empty(len(texts), int)
    order[by_text] = range(len(texts))
    example = {
        "id": to_bytes(question.id),
        "input": to_bytes(question.input),
        "output": None if question.output is None else to_bytes(question.output),
        "user_id": None if question.user_id is None else encode(question.user_id),
        "order": encode(order.tolist()),
        "item_ids": encode([item["id"] for item in question.profile]),
    }
    return StoredQuestion(example, b"[" + b",".join(texts[index] for index in by_text) + b"]")


def decode_question(example: Mapping[str, Any], items: bytes) -> Question:
    """Question of a stored example and its encoded profile; the inverse of encode_question."""
    fields = parse_record(items)
    order, item_ids = parse_record(example["order"]), parse_record(example["item_ids"])
    output, user_id = example["output"], example["user_id"]
    return Question(
        id=_to_text(example["id"]),
        input=_to_text(example["input"]),
        profile=tuple({"id": key, **fields[index]} for index, key in zip(order, item_ids, strict=True)),
        user_id=None if user_id is None else parse_record(user_id),
        output=None if output is None else _to_text(output),
    )


def to_bytes(text: str) -> bytes:
    """UTF-8 bytes of a text; lone surrogates are kept."""
    return text.encode("utf-8", "surrogatepass")


def _to_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")
