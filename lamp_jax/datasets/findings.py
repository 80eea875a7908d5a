"""Findings of checks of LaMP files, each with its remedy, and their tally."""

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

from lamp_jax.data.dates import Date
from lamp_jax.runs.json_records import RawRecord

Severity = Literal["error", "warning", "note"]

EXAMPLES = 3
"""Number of locations kept for each finding."""


@dataclass(frozen=True)
class Finding:
    """Kind of defect; an `error` if some stage would refuse the file. `meaning` ends with the remedy."""

    name: str
    severity: Severity
    meaning: str


_ROWS = (
    Finding(
        "broken file", "error", "not a complete JSON file of this form; the rest is not checked: make the file again"
    ),
    Finding("broken record", "error", "not JSON; fix the record, or make the file again"),
    Finding("nan", "error", "NaN and Infinity are not JSON; write a number or leave the field out"),
    Finding("encoding", "error", "bytes that are not UTF-8; write the file as UTF-8"),
    Finding(
        "key twice",
        "error",
        "an object with a repeated key, of which parsers keep one or the other; remove one of the two",
    ),
    Finding("no object", "error", "a record that is not a JSON object; remove it"),
    Finding("bad field", "error", "a required field is missing or of a wrong type; add or correct it"),
    Finding("bad item", "error", "a profile item that is not an object with an 'id', a text or an integer; add the id"),
    Finding(
        "missing text", "error", "a field that the task needs is missing or not a text; is it a file of this task?"
    ),
    Finding("id twice", "error", "a repeated question id; remove or rename one of the questions"),
    Finding("no marker", "error", "an input that does not match its task's template, so that it has no query; fix it"),
    Finding("bad date", "error", "a date that cannot be read; write 2007, 2007-05, 2007-05-31 or an ISO time stamp"),
    Finding("some dates", "error", "a profile in which only some items have a date; add or remove dates"),
    Finding("unknown gold", "error", "a reference that is none of the task's labels; fix it, or give --task"),
    Finding("no item ids", "error", "a value of a ranking that is not a list of item ids; rank the questions again"),
    Finding("unknown answer", "warning", "a prediction that is none of the task's labels; it counts as wrong"),
    Finding("unknown task", "warning", "neither inputs nor name show the task: checked without it; give --task"),
    Finding("other count", "warning", "another number of records than was published; is the file complete?"),
    Finding(
        "byte order mark",
        "warning",
        "the file begins with a byte order mark, which other programs may refuse; remove it",
    ),
    Finding("empty profile", "warning", "nothing to personalize from; the prompt is the input alone"),
    Finding("empty text", "warning", "an empty field that the task reads; remove the item or fill it in"),
    Finding("unknown label", "warning", "a profile item whose label is none of the task's; fix or remove it"),
    Finding(
        "same item", "warning", "an item that equals another of its profile except for the id; remove one of the two"
    ),
    Finding("item id twice", "warning", "an item id that is repeated in the profile or ranking; rename one of the two"),
    Finding("shared id", "warning", "an item id that has other content in an earlier question; do not join by item id"),
    Finding("query in profile", "warning", "the query is itself an item of the profile, answer included; remove it"),
    Finding("surrogate", "warning", "a lone surrogate in a text; it is kept unchanged, but other programs refuse it"),
    Finding(
        "line separator", "warning", "U+0085, U+2028 or the like in a text; do not read such lines by splitlines()"
    ),
    Finding("big number", "warning", "a number beyond 64 bits, which loses digits; write it as a text"),
    Finding("patched", "note", "a known defect of a published file, patched on reading"),
)
FINDINGS = {finding.name: finding for finding in _ROWS}


@dataclass
class Tally:
    """Counts over consecutive records of a file. Tallies are added in the file's order."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    facts: Counter[str] = field(default_factory=Counter)
    dates: tuple[tuple[Date, str], ...] = ()
    """First and last date, as sort keys and texts."""
    records: array = field(default_factory=lambda: array("Q"))
    """For each valid record: hash of the id, offsets of its start and end in the file, number of items."""
    items: array = field(default_factory=lambda: array("Q"))
    """For each item of those records: hash of the id, hash of the contents."""

    def find(self, name: str, where: str, *, count: int = 1) -> None:
        self.counts[name] += count
        self.examples[name] = [*self.examples.get(name, ()), where][:EXAMPLES]

    def add_dates(self, dates: Iterable[tuple[Date, str]]) -> None:
        found = sorted((*self.dates, *dates))
        self.dates = (found[0], found[-1]) if found else ()

    def add_record(self, record_id: object, raw: RawRecord, items: int) -> None:
        self.records.extend((hash_text(record_id), raw.offset, raw.offset + len(raw.content), items))

    def __iadd__(self, other: "Tally") -> "Tally":
        self.counts += other.counts
        self.facts += other.facts
        for name, examples in other.examples.items():
            self.examples[name] = [*self.examples.get(name, ()), *examples][:EXAMPLES]
        self.add_dates(other.dates)
        self.records += other.records
        self.items += other.items
        return self


def hash_text(text: object) -> int:
    """64-bit hash of a text."""
    return hash_bytes(str(text).encode("utf-8", "surrogatepass"))


def hash_bytes(content: bytes) -> int:
    """64-bit hash of bytes, the same in every process."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")
