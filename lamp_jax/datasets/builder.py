"""Builder of the TensorFlow dataset `lamp`: three passes over LaMP files, each distinct profile stored once.

    import lamp_jax.datasets.builder  # registers it
    builder = tfds.builder("lamp/lamp_3_time", data_dir=OUT, source=TREE)
    builder.download_and_prepare()

Question i of a file is record i of its part, and `profile` is the number of a record of the split `profiles`.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from operator import length_hint
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.writer import ExampleWriter
from tensorflow_datasets.proto import tf_example_pb2
from tqdm.auto import tqdm

from lamp_jax.config import Part, Split, Work
from lamp_jax.data.chunks import Chunk, cut_chunks, questions_of
from lamp_jax.data.files import check_same_ids, check_unique, question_in, read_outputs
from lamp_jax.data.layout import find_parts
from lamp_jax.data.patches import ALL as ALL_PATCHES
from lamp_jax.data.sources import PROFILES, decode_question, encode_question, task_config, to_bytes
from lamp_jax.errors import LampError
from lamp_jax.runs.records import digest
from lamp_jax.runs.workers import parallel_map
from lamp_jax.tasks.catalog import TASKS, Task

# TFDS holds one shard in memory while it writes it. Small records cost more than their bytes: they are scattered over
# the memory in which complete questions were parsed.
_SHARD_BYTES, _SHARD_RECORDS = 2**26, 2**11
_DIGEST_BYTES = 16
_FIELDS = {
    "id": "id of the question",
    "input": "input text",
    "output": "the reference; missing where it is not known",
    "user_id": "JSON, a text or an integer; missing where it is not known",
    "order": "JSON: for each profile item, in the question's order, its index in `items`",
    "item_ids": "JSON: ids of the profile items, in the question's order",
    "items": "JSON: a profile's items without their ids, sorted",
}
_PROFILE = "number of the record in the split `profiles` that holds the profile"
Example = dict[str, Any]
ShardExamples = Callable[[], Iterator[tuple[int, Example]]]


def config_name(task: Task, split: Split) -> str:
    """Name of a task's data set: `lamp_3_time`."""
    return f"{task_config(task)}_{split}"


_CONFIGS: dict[str, tuple[Task, Split]] = {
    config_name(task, split): (task, split) for task in TASKS.values() for split in get_args(Split)
}


class Lamp(tfds.core.ShardBasedBuilder):
    """Questions of one task, in the order of their files, and their distinct profiles.

    `source`, a tree of `lamp download` or `lamp build`, is needed to prepare the data set, not to read it; or the
    TreeScan of a tree. Preparing fixes known defects (`patches`) and runs on the workers that `work` selects: TFDS's
    own Beam options are not for this builder. LampError, with the file and the id, for bad files before anything is
    written.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS's form)
        tfds.core.BuilderConfig(name=name, description=f"{task.name}, {split} split")
        for name, (task, split) in _CONFIGS.items()
    ]
    url_infos = {}  # noqa: RUF012 (nothing is downloaded; TFDS would look for a file of checksums beside this one)

    def __init__(
        self,
        *,
        source: "str | Path | TreeScan" = "",
        patches: Iterable[str] = ALL_PATCHES,
        work: Work | None = None,
        file_format: str = "array_record",
        **arguments: Any,
    ):
        super().__init__(file_format=file_format, **arguments)
        self._source, self._patches, self._work = source, tuple(patches), work or Work()

    def _info(self) -> tfds.core.DatasetInfo:
        self._facts = tfds.core.MetadataDict()
        features: dict[str, Any] = {name: tfds.features.Text(doc=doc, optional=True) for name, doc in _FIELDS.items()}
        features["profile"] = tfds.features.Scalar(np.int64, doc=_PROFILE, optional=True)
        return tfds.core.DatasetInfo(
            builder=self,
            description="LaMP questions, each distinct profile once. Records of the split `profiles` have `items`, all "
            "others the other fields. `lamp_jax.data.sources.LampSource` joins them.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=self._facts,
        )

    def _example_writer(self) -> ExampleWriter:
        return _SortedWriter(super()._example_writer().file_format)

    def _shard_iterators_per_split(self, dl_manager: Any) -> Mapping[str, Sequence[ShardExamples]]:
        task, split = _CONFIGS[str(self.builder_config_name)]
        scan = self._source
        if not scan:
            raise LampError(f"{self.info.full_name}: give source=TREE, a tree of `lamp download` or `lamp build`")
        if not isinstance(scan, TreeScan):
            scan = TreeScan(scan, ReadOptions(task, split, self._patches, self._work))
        self._facts.update(scan.facts())
        return scan.shards()


class _SortedWriter(ExampleWriter):
    """Writer that sorts each example's features by name.

    TFDS 4.9.10 writes them in the order of protobuf's map, which differs between processes, so that two runs would
    write different bytes.
    """

    def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> Any:
        return super().write(path, ((key, _sort_features(example)) for key, example in examples))


def _sort_features(example: bytes) -> bytes:
    parsed = tf_example_pb2.Example.FromString(example)  # pyright: ignore[reportAttributeAccessIssue] (generated)
    return parsed.SerializeToString(deterministic=True)


class ReadOptions(NamedTuple):
    """Files of a tree to read, patches to apply, and workers to use."""

    task: Task
    split: Split
    patches: tuple[str, ...]
    work: Work


class ScannedQuestion(NamedTuple):
    """Facts about a question from the first pass."""

    id: str
    digest: bytes  # of its profile
    items_size: int
    record_size: int


@dataclass
class ScannedPart:
    """Files of a part, chunks of its questions, number of each question's profile, and bytes of its records."""

    questions: Path
    outputs: Path | None
    chunks: list[Chunk] = field(default_factory=list)
    numbers: array = field(default_factory=lambda: array("q"))
    size: int = 0

    @property
    def length(self) -> int:
        """Size of the questions' file in bytes."""
        return self.questions.stat().st_size

    def cut_chunks(self) -> Iterator[Chunk]:
        """Chunks of the part, which are also kept in `chunks`."""
        for chunk in cut_chunks(self.questions):
            self.chunks.append(chunk)
            yield chunk


class TreeScan:
    """Result of the first pass over a tree's files, which the two other passes write.

    Construction raises LampError, with the file and the id, for invalid files.
    """

    def __init__(self, source: str | Path, options: ReadOptions):
        self._options = options
        self._parts: dict[Part, ScannedPart] = {}
        self._numbers: dict[bytes, int] = {}  # of profiles, by their digests
        self._new: list[tuple[Chunk, list[int]]] = []  # records with a profile that no earlier record has
        self._size = 0  # of the distinct profiles
        for name, (questions, outputs) in find_parts(source, options.task, options.split).items():
            self._parts[name] = part = ScannedPart(questions, outputs)
            self._scan_part(part, f"{name}, scan")

    def _scan_part(self, part: ScannedPart, what: str) -> None:
        ids: list[str] = []
        for index, scanned in enumerate(self._map(scan_chunk, part.cut_chunks(), what, part.length)):
            self._number_profiles(part.chunks[index], scanned, part)
            ids += [question.id for question in scanned]
        check_unique(ids, set(), part.questions)
        if part.outputs is not None:
            references = read_outputs(part.outputs).by_id
            check_same_ids(ids, references, left=str(part.questions), right=str(part.outputs))

    def _number_profiles(self, chunk: Chunk, scanned: list[ScannedQuestion], part: ScannedPart) -> None:
        new = []
        for record, question in enumerate(scanned, chunk.first):
            if question.digest not in self._numbers:
                self._numbers[question.digest] = len(self._numbers)
                self._size += question.items_size
                new.append(record)
            part.numbers.append(self._numbers[question.digest])
            part.size += question.record_size
        if new:
            self._new.append((chunk, new))

    def facts(self) -> dict[str, Any]:
        """Provenance of the data set, as JSON."""
        task, split, patches, _ = self._options
        paths = [path for part in self._parts.values() for path in (part.questions, part.outputs) if path]
        sources = {path.name: {"bytes": path.stat().st_size, "sha256": digest(str(path))} for path in paths}
        return {"task": task.name, "split": split, "patches": list(patches), "sources": sources}

    def shards(self) -> dict[str, list[ShardExamples]]:
        """Examples of each split's shards; to be read in this order, each once."""
        shards = {
            name: _shards(self._examples(name), len(part.numbers), part.size) for name, part in self._parts.items()
        }
        return {**shards, PROFILES: _shards(self._profiles(), len(self._numbers), self._size)}

    def _examples(self, name: Part) -> Iterator[Example]:
        part = self._parts[name]
        references = read_outputs(part.outputs).by_id if part.outputs else None
        examples = chain.from_iterable(self._map(examples_of, part.chunks, name, part.length))
        for (question_id, example), number in zip(examples, part.numbers, strict=True):
            output = example["output"] if references is None else to_bytes(references[question_id])
            yield {**example, "output": output, "profile": number, "items": None}

    def _profiles(self) -> Iterator[Example]:
        missing = dict.fromkeys((*_FIELDS, "profile"))
        for items in chain.from_iterable(self._map(profiles_of, self._new, PROFILES, self._size)):
            yield {**missing, "items": items}

    def _map(self, function: Callable[..., list], pieces: Iterable, what: str, size: int) -> Iterator[list]:
        results = parallel_map(partial(function, options=self._options), pieces, self._options.work, size=size)
        return iter(tqdm(results, what, length_hint(pieces) or None, unit=" chunks", disable=None))


def scan_chunk(chunk: Chunk, *, options: ReadOptions) -> list[ScannedQuestion]:
    """Facts about a chunk's questions. LampError for a question that encoding would change."""
    found = []
    for question in questions_of(chunk, task=options.task, patches=options.patches):
        example, items = encode_question(question)
        if decode_question(example, items) != question:
            where = f"{chunk.path}, question {question.id!r}"
            raise LampError(f"{where}: contains a number that cannot be stored exactly; write it as a text")
        size = sum(len(value) for value in example.values() if value)
        found.append(
            ScannedQuestion(question.id, hashlib.blake2b(items, digest_size=_DIGEST_BYTES).digest(), len(items), size)
        )
    return found


def examples_of(chunk: Chunk, *, options: ReadOptions) -> list[tuple[str, Example]]:
    """Ids and records of a chunk's questions, without the numbers of their profiles."""
    questions = questions_of(chunk, patches=options.patches)
    return [(question.id, encode_question(question).example) for question in questions]


def profiles_of(piece: tuple[Chunk, list[int]], *, options: ReadOptions) -> list[bytes]:
    """Encoded profiles of a chunk's records with these numbers."""
    chunk, numbers = piece
    wanted = set(numbers)
    records = (raw for raw in chunk.read() if raw.number in wanted)
    return [encode_question(question_in(raw, chunk.path, patches=options.patches)).items for raw in records]


def _shards(examples: Iterator[Example], count: int, size: int) -> list[ShardExamples]:
    """Shards with equal numbers of examples, of which there are `count` with `size` bytes."""
    shards = min(count, 1 + max(size // _SHARD_BYTES, count // _SHARD_RECORDS))
    ends = [count * (shard + 1) // shards for shard in range(shards)]
    numbered = enumerate(examples)
    shard_examples: list[ShardExamples] = [
        partial(islice, numbered, end - start) for start, end in zip([0, *ends], ends[:-1], strict=False)
    ]
    # The last shard reads to the end, so that the worker processes are stopped.
    return [*shard_examples, lambda: numbered]
