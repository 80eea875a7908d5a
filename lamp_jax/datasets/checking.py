"""Checks of LaMP files: facts and findings of a file, tallied by chunks."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from lamp_jax.config import Work
from lamp_jax.data.chunks import Chunk, cut_chunks
from lamp_jax.data.dates import parse_date
from lamp_jax.data.files import is_id, is_text
from lamp_jax.data.layout import benchmark_files
from lamp_jax.data.patches import PATCHES
from lamp_jax.datasets.findings import EXAMPLES, FINDINGS, Tally, hash_bytes, hash_text
from lamp_jax.errors import LampError
from lamp_jax.runs.json_files import encode, short_repr
from lamp_jax.runs.json_records import BOM, RawRecord, RecordScanner, parse_record
from lamp_jax.runs.workers import parallel_map
from lamp_jax.tasks.catalog import TASKS, MissingMarker, Task, last_named

FileForm = Literal["questions", "outputs", "predictions", "ranking"]

_HEAD_RECORDS = 200  # records from which the file's form and task are detected
_HEAD = 2**20


_OUTPUT_FIELDS: Mapping[str, Callable[[Any], bool]] = {"id": is_id, "output": is_text}
_QUESTION_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "id": is_id,
    "input": lambda value: isinstance(value, str),
    "profile": lambda value: isinstance(value, list),
    "user_id": lambda value: value is None or is_id(value),
}
_JSON_FINDINGS = {
    "is not JSON": "nan",
    "not UTF-8": "encoding",
    "occurs twice": "key twice",
}  # findings by a part of parse_record's message
_ODD_TEXTS = (  # finding, bytes of which a record with the finding contains at least one, characters in its text
    ("surrogate", (rb"\ud", rb"\uD", b"\xed"), re.compile("[\ud800-\udfff]")),
    (
        "line separator",
        (b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xa9", rb"\u00", rb"\u202", rb"\f"),
        re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]"),
    ),
)


@dataclass(frozen=True)
class _CheckedRecord:
    """Parsed record, and the tally of its findings."""

    value: dict[str, Any]
    raw: RawRecord
    where: str
    tally: Tally

    def find(self, name: str, item: Mapping[str, Any] | None = None, *, field: str = "") -> None:
        where = self.where if item is None else f"{self.where}, item {short_repr(item['id'])}"
        self.tally.find(name, f"{where}: {field!r}" if field else where)

    def check_texts(self) -> None:
        for name, byte_patterns, pattern in _ODD_TEXTS:
            if any(byte_pattern in self.raw.content for byte_pattern in byte_patterns):
                parts = (self.value, *_objects(self.value.get("profile")))
                if any(isinstance(text, str) and pattern.search(text) for part in parts for text in part.values()):
                    self.find(name)

    def has_fields(self, fields: Mapping[str, Callable[[Any], bool]]) -> bool:
        """Whether all fields are valid; invalid ones are findings."""
        bad = [name for name, fits in fields.items() if not fits(self.value.get(name))]
        for name in bad:
            found = short_repr(self.value[name]) if name in self.value else "nothing"
            self.tally.find("bad field", f"{self.where}: {name!r}, found {found}")
        return not bad


@dataclass(frozen=True)
class FileCheck:
    """Facts about a file, by name, and its findings: name, severity, count, meaning and examples of each."""

    file: str
    form: str
    task: str | None
    facts: dict[str, Any]
    findings: list[dict[str, Any]]

    @property
    def errors(self) -> int:
        return sum(finding["count"] for finding in self.findings if finding["severity"] == "error")


def check_file(path: str | Path, *, task: Task | None = None, work: Work) -> FileCheck:
    """Check of a file of questions, outputs, predictions or rankings; without `task`, the task is detected.

    Invalid records are findings, and so are incomplete or missing files: nothing is raised.
    """
    start = _read_start(path)
    head, envelope = _read_head(path, complete=not _is_list(start))
    form = _detect_form(path, start, head)
    tally = Tally()
    if form == "ranking":
        task = None
        _tally_ranking(path, tally)
    else:
        task = task or detect_task(path, head, envelope)
        if task is None:
            tally.find("unknown task", "")
        _tally_records(path, tally, partial(tally_chunk, form=form, task=task), work=work)
        _find_conflicting_ids(path, tally)
        _check_count(path, tally, task)
    if start.startswith(BOM):
        tally.find("byte order mark", "")
    name = "merged questions" if form == "questions" and tally.facts["with gold"] else form
    return FileCheck(str(path), name, task and task.name, _facts(path, form, tally), _list_findings(tally))


def detect_task(path: str | Path, head: Sequence[Any], envelope: Any = None) -> Task | None:
    """Task of a file, by most of its first records' inputs, or by the name in the envelope or the path.

    LaMP-2's two tasks share their name and are distinguished by items' fields and labels. None for an unknown task.
    """
    inputs = [record["input"] for record in head if isinstance(record.get("input"), str)]
    for task in TASKS.values():
        begin = task.template.partition("{")[0]
        if begin and 2 * sum(text.startswith(begin) for text in inputs) >= len(inputs) > 0:
            return task
    named = envelope.get("task") if isinstance(envelope, dict) else None
    tasks = last_named(f"{Path(path).absolute().as_posix()} {named or ''}")
    in_path = [f"/{task.tree_folder}/" in Path(path).absolute().as_posix() for task in tasks]
    # Ties are broken by the longest folder: `LaMP_2/new` where that is in the path.
    ranks = [
        (_count_fitting(task, head), there * len(task.tree_folder)) for task, there in zip(tasks, in_path, strict=True)
    ]
    return tasks[ranks.index(max(ranks))] if tasks else None


def tally_chunk(chunk: Chunk, *, form: FileForm, task: Task | None) -> Tally:
    """Tally of a chunk's records."""
    tally = Tally()
    for raw in chunk.read():
        tally.facts["records"] += 1
        value = _parse(raw, tally)
        if value is not None:
            named = is_id(value.get("id"))
            where = f"question {short_repr(value['id'])}" if named else f"record {raw.number}, byte {raw.offset}"
            record = _CheckedRecord(value, raw, where, tally)
            record.check_texts()
            _check_question(record, task) if form == "questions" else _check_output(record, form, task)
    return tally


def _read_start(path: str | Path) -> bytes:
    """First bytes of a file; empty where it cannot be read, which the tally reports."""
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD)
    except OSError:
        return b""


def _is_list(start: bytes) -> bool:
    return start.removeprefix(BOM).lstrip()[:1] == b"["


def _read_head(path: str | Path, *, complete: bool) -> tuple[list[dict[str, Any]], Any]:
    """First records of a file, those that are objects; and its envelope, where the entire file is read."""
    scanner = RecordScanner(path)
    head: list[dict[str, Any]] = []
    try:
        for raw in scanner:
            if raw.number < _HEAD_RECORDS:
                record = _parse(raw, Tally())
                head += [] if record is None else [record]
            elif not complete:
                break
    except LampError:
        pass  # The tally meets and reports the error.
    return head, scanner.envelope


def _detect_form(path: str | Path, start: bytes, head: Sequence[dict[str, Any]]) -> FileForm:
    before_list = start.removeprefix(BOM).lstrip().partition(b"[")[0]
    if before_list.startswith(b"{") and b'"golds"' not in before_list:
        return "ranking"
    question_like = sum("profile" in record or "input" in record for record in head)
    if 2 * question_like >= len(head):
        return "questions"
    # Files of references and of predictions have the same form; a prediction may be any text, a reference may not.
    return "outputs" if re.search("output|gold", Path(path).name) else "predictions"


def _count_fitting(task: Task, head: Sequence[dict[str, Any]]) -> int:
    """Number of items with the task's fields plus number of references among its labels."""
    items = [item for record in head for item in _objects(record.get("profile"))]
    return sum(task.target in item for item in items) + sum(record.get("output") in task.labels for record in head)


def _objects(profile: Any) -> list[dict[str, Any]]:
    return [item for item in profile if isinstance(item, dict)] if isinstance(profile, list) else []


def _tally_records(path: str | Path, tally: Tally, count: Callable[[Chunk], Tally], *, work: Work) -> None:
    broken: list[LampError] = []
    size = os.path.getsize(path) if os.path.exists(path) else 0
    for part in parallel_map(count, _chunks_until_error(path, broken), work, size=size):
        tally += part
    for error in broken:
        tally.find("broken file", str(error))


def _chunks_until_error(path: str | Path, broken: list[LampError]) -> Iterator[Chunk]:
    """Chunks of a file; the error at the end of an incomplete file is added to `broken`."""
    try:
        yield from cut_chunks(path)
    except LampError as error:
        broken.append(error)


def _parse(raw: RawRecord, tally: Tally) -> dict[str, Any] | None:
    """Parsed record; None for anything but a JSON object, which is a finding."""
    where = f"record {raw.number}, byte {raw.offset}"
    try:
        value = parse_record(raw.content)
    except ValueError as error:
        name = next((name for words, name in _JSON_FINDINGS.items() if words in str(error)), "broken record")
        return tally.find(name, f"{where}: {error}")
    return value if isinstance(value, dict) else tally.find("no object", where)


def _check_output(record: _CheckedRecord, form: FileForm, task: Task | None) -> None:
    if record.has_fields(_OUTPUT_FIELDS):
        record.tally.add_record(record.value["id"], record.raw, 0)
        if task is not None and task.labels and str(record.value["output"]) not in task.labels:
            record.find("unknown gold" if form == "outputs" else "unknown answer")


def _check_question(record: _CheckedRecord, task: Task | None) -> None:
    if not record.has_fields(_QUESTION_FIELDS):
        return
    profile, reference, facts = record.value["profile"], record.value.get("output"), record.tally.facts
    if reference is not None and not is_text(reference):
        record.tally.find("bad field", f"{record.where}: 'output', found {short_repr(reference)}")
        reference = None
    items = _tally_items(record)
    if not profile:
        record.find("empty profile")
    facts["with user_id"] += record.value.get("user_id") is not None
    facts["with gold"] += reference is not None
    _check_dates(record, items)
    patched = _apply_patches(record) if len(items) == len(profile) else record.value
    if task is not None:
        if reference is not None and task.labels and str(reference) not in task.labels:
            record.find("unknown gold")
        query = _find_query(record, patched["input"], task)
        fields = task.fields
        for item in items:
            _check_item(record, item, task, fields=fields, query=query)


def _apply_patches(record: _CheckedRecord) -> dict[str, Any]:
    """Record with known defects fixed, as readers have it."""
    value = record.value
    for patch in PATCHES.values():
        if patch.found(value):
            record.tally.find("patched", f"{record.where}: {patch.name}")
            value = patch.fix(value)
    return value


def _tally_items(record: _CheckedRecord) -> list[dict[str, Any]]:
    """Items that have an id."""
    items: list[dict[str, Any]] = []
    ids, contents = set(), set()
    for index, item in enumerate(record.value["profile"]):
        if not isinstance(item, dict) or not is_id(item.get("id")):
            record.tally.find("bad item", f"{record.where}, index {index} of the profile")
            continue
        key, content = hash_text(item["id"]), _hash_content(item)
        for name, seen, found in (("item id twice", ids, key), ("same item", contents, content)):
            if found in seen:
                record.find(name, item)
            seen.add(found)
        if any(map(_is_big, item.values())):
            record.find("big number", item)
        record.tally.items.extend((key, content))
        items.append(item)
    record.tally.add_record(record.value["id"], record.raw, len(items))
    return items


def _check_dates(record: _CheckedRecord, items: Sequence[Mapping[str, Any]]) -> None:
    dated = [item for item in items if "date" in item]
    record.tally.facts["items with dates"] += len(dated)
    if 0 < len(dated) < len(items):
        record.find("some dates")
    dates = []
    for item in dated:
        try:
            dates.append((parse_date(item["date"]), str(item["date"])))
        except ValueError:
            record.find("bad date", item)
    record.tally.add_dates(dates)


def _find_query(record: _CheckedRecord, input_text: str, task: Task) -> str | None:
    try:
        return task.query(input_text)
    except MissingMarker as error:
        return record.tally.find("no marker", f"{record.where}: no {error.text}")


def _check_item(
    record: _CheckedRecord, item: Mapping[str, Any], task: Task, *, fields: Sequence[str], query: str | None
) -> None:
    texts = {name: item.get(name) for name in fields}
    for name, text in texts.items():
        if not is_text(text):
            return record.find("missing text", item, field=name)
    for name, text in texts.items():
        if not str(text).strip():
            record.find("empty text", item, field=name)
            break
    # LaMP-1's labels are not a field of its items.
    if "{text}" in task.template and task.labels and str(texts[task.target]) not in task.labels:
        record.find("unknown label", item)
    if query and texts[task.source] == query:
        record.find("query in profile", item)


def _find_conflicting_ids(path: str | Path, tally: Tally) -> None:
    """Finds repeated ids of questions, and ids of items whose contents differ between questions."""
    records = np.array(tally.records, np.uint64).reshape(-1, 4)
    items = np.array(tally.items, np.uint64).reshape(-1, 2)
    repeated = np.flatnonzero(_find_first(records[:, 0]) != np.arange(len(records)))
    for index in repeated[:EXAMPLES].tolist():
        tally.find("id twice", f"question {short_repr(_read_record(path, records[index])['id'])}", count=0)
    tally.counts["id twice"] += len(repeated)
    owner = np.repeat(np.arange(len(records)), records[:, 3].astype(np.int64))
    first = _find_first(items[:, 0])
    shared = np.flatnonzero((items[:, 1] != items[first, 1]) & (owner != owner[first]))
    for index in shared[:EXAMPLES].tolist():
        question = _read_record(path, records[owner[index]])
        keyed = (item for item in _objects(question["profile"]) if _is_id(item.get("id"), items[index, 0]))
        item_id = next(keyed)["id"]
        tally.find("shared id", f"question {short_repr(question['id'])}, item {short_repr(item_id)}", count=0)
    tally.counts["shared id"] += len(shared)


def _find_first(keys: np.ndarray) -> np.ndarray:
    """Index of the first occurrence of each key."""
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    return first[which]


def _read_record(path: str | Path, row: np.ndarray) -> Any:
    start, end = map(int, row[1:3])
    with open(path, "rb") as file:
        file.seek(start)
        return parse_record(file.read(end - start))


def _check_count(path: str | Path, tally: Tally, task: Task | None) -> None:
    """Finds a count other than the published one, for a path in a downloaded tree."""
    if task is None:
        return
    parts = Path(path).absolute().parts
    # The time split first: its paths end like those of the user split.
    files = [file for split in ("time", "user") for file in benchmark_files(task, split)]
    file = next((file for file in files if parts[-len(file.path.parts) :] == file.path.parts), None)
    if file is not None and file.count not in (None, tally.facts["records"]):
        tally.find("other count", f"{tally.facts['records']} records, {file.count} published")


def _tally_ranking(path: str | Path, tally: Tally) -> None:
    try:
        content = Path(path).read_bytes().removeprefix(BOM)
        msgspec.json.decode(content, type=dict[str, msgspec.Raw])  # as rankings are read, except for repeated ids
        pairs = json.loads(content, object_pairs_hook=tuple)
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        return tally.find("broken file", f"{path}: {error}")
    if not pairs:
        tally.find("broken file", f"{path}: contains no rankings")
    seen: set[str] = set()
    for question_id, item_ids in pairs:
        where = f"question {short_repr(question_id)}"
        tally.facts["records"] += 1
        if question_id in seen:
            tally.find("id twice", where)
        seen.add(question_id)
        if not isinstance(item_ids, list) or not all(map(_is_item_id, item_ids)):
            tally.find("no item ids", where)
            continue
        tally.records.extend((0, 0, 0, len(item_ids)))
        if not item_ids:
            tally.find("empty profile", where)
        if len({str(item_id) for item_id in item_ids}) < len(item_ids):
            tally.find("item id twice", where)


def _facts(path: str | Path, form: FileForm, tally: Tally) -> dict[str, Any]:
    """Facts about the file, by name."""
    facts: dict[str, Any] = {"records": tally.facts["records"]}
    sizes = np.array(tally.records, np.int64).reshape(-1, 4)[:, 3]
    if form in ("questions", "ranking") and len(sizes):
        facts["items"] = int(sizes.sum())
        facts["profile sizes"] = {
            "min": int(sizes.min()),
            "median": float(np.median(sizes)),
            "mean": float(sizes.mean()),
            "max": int(sizes.max()),
        }
    if form == "questions":
        facts |= {name: tally.facts[name] for name in ("with gold", "with user_id", "items with dates")}
    if tally.dates:
        facts["dates"] = {"first": tally.dates[0][1], "last": tally.dates[1][1]}
    return facts | {"bytes": os.path.getsize(path) if os.path.exists(path) else 0}


def _list_findings(tally: Tally) -> list[dict[str, Any]]:
    return [
        {
            **asdict(row),
            "count": tally.counts[row.name],
            "examples": [example for example in tally.examples[row.name] if example],
        }
        for row in FINDINGS.values()
        if tally.counts[row.name]
    ]


def _hash_content(item: Mapping[str, Any]) -> int:
    """Hash of an item without its id; the same in every process."""
    return hash_bytes(encode(sorted([pair for pair in item.items() if pair[0] != "id"])))


def _is_id(value: object, key: np.uint64) -> bool:
    return is_id(value) and hash_text(value) == int(key)


def _is_big(value: object) -> bool:
    return isinstance(value, int | float) and not -(2**63) <= value < 2**64


def _is_item_id(value: object) -> bool:
    return is_id(value) and not _is_big(value)
