"""Mapping from the columns of tables to the fields of profile items (`--map`, `--join`)."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lamp_jax.datasets.form import BenchmarkForm
from lamp_jax.datasets.tables import (
    TableRow,
    TextFormat,
    UnusableValue,
    check_encoding,
    columns_of,
    read_lookup,
    read_rows,
    text_of,
)
from lamp_jax.errors import LampError
from lamp_jax.tasks.catalog import Task, find_task

_PLACEHOLDER = re.compile(r"{{|}}|{([^{}|]+)(?:\|([^{}]*))?}")


class _Placeholder(NamedTuple):
    before: str
    column: str
    separator: str | None


class Pattern(NamedTuple):
    """Text template over the columns of a row: placeholders, each with the literal text before it, and the text after
    the last placeholder."""

    placeholders: tuple[_Placeholder, ...]
    after: str = ""

    @classmethod
    def of_column(cls, column: str) -> "Pattern":
        return cls((_Placeholder("", column, None),))

    @property
    def columns(self) -> list[str]:
        return [placeholder.column for placeholder in self.placeholders]

    @property
    def column(self) -> str | None:
        """Column of a pattern that consists of one column only; else None."""
        return self.columns[0] if self == Pattern.of_column(self.columns[0]) else None

    def fill(self, row: TableRow) -> str:
        """Text of a row; "" where all columns are empty."""
        filled, empty = "", True
        for before, column, separator in self.placeholders:
            text = text_of(row.get(column)) if separator is None else text_of(row.get(column), separator="|")
            empty = empty and not text.strip()
            filled += before + (text if separator is None else text.replace("|", separator))
        return "" if empty else filled + self.after


def parse_pattern(text: str) -> Pattern:
    """Pattern of a text: `review` is the column of this name; with braces, `{title}. Genres: {genres|, }.`, a template.

    In `{column|separator}` bars in the column's value are replaced by `separator`, and the texts of a list are joined
    by it (elsewhere by a comma). `{{` and `}}` are braces. LampError for other braces, and for braces without a column.
    """
    if "{" not in text and "}" not in text:
        return Pattern.of_column(text)
    placeholders: list[_Placeholder] = []
    before, end = "", 0
    for match in _PLACEHOLDER.finditer(text):
        before += _literal(text, end, match.start())
        end = match.end()
        if match[1] is None:
            before += match[0][0]
        else:
            placeholders.append(_Placeholder(before, match[1], match[2]))
            before = ""
    after = before + _literal(text, end, len(text))
    if not placeholders:
        raise LampError(
            f"the pattern {text!r} names no column; write {{column}} where a column's value is to be inserted"
        )
    return Pattern(tuple(placeholders), after)


def _literal(text: str, start: int, end: int) -> str:
    if set(text[start:end]) & set("{}"):
        raise LampError(f"the pattern {text!r} has an unmatched brace; write {{{{ or }}}} for a literal brace")
    return text[start:end]


def parse_map(entries: Iterable[str], task: Task) -> dict[str, Pattern]:
    """Patterns of the fields in `--map`. LampError for an entry that is not FIELD=COLUMN, or has an unknown field."""
    known = ["user", *task.fields, "date", "input"] + ["reference"] * task.cites
    patterns: dict[str, Pattern] = {}
    for entry in entries:
        name, found, text = entry.partition("=")
        if not found or not text:
            raise LampError(f"--map {entry}: write FIELD=COLUMN, or FIELD='a text with {{COLUMN}}s'")
        if name not in known:
            raise LampError(f"--map {entry}: no field {name!r}; the fields of {task.name} are {', '.join(known)}")
        if name in patterns:
            raise LampError(f"--map {entry}: {name!r} is mapped twice; leave out one of the two entries")
        patterns[name] = parse_pattern(text)
    return patterns


class JoinedTable(NamedTuple):
    """Table whose columns are added to rows: its rows by the text in the column `key`."""

    path: str
    key: str
    columns: Collection[str]
    rows: Mapping[str, TableRow]

    def add_to(self, row: TableRow) -> TableRow:
        key = text_of(row.get(self.key))
        matching = self.rows.get(key)
        if matching is None:
            existing = next(iter(self.rows), None)
            example = f"{self.key} {key!r}" + ("" if existing is None else f", the table has {existing!r} and others")
            raise UnusableValue(f"no partner in {Path(self.path).name}", example)
        return {**row, **matching}


def split_join(entry: str) -> tuple[str, str]:
    """File and column of an entry of `--join`. LampError where it is not FILE:COLUMN."""
    path, _, key = entry.rpartition(":")
    if not path or not key:
        raise LampError(f"--join {entry}: write FILE:COLUMN, such as movies.csv:movieId")
    return path, key


@dataclass(frozen=True)
class HistoryTable:
    """Table of histories: its rows, the tables joined to it, and each field's pattern over the columns."""

    path: str
    columns: Collection[str]
    joins: tuple[JoinedTable, ...]
    patterns: Mapping[str, Pattern]
    text: TextFormat

    def rows(self) -> Iterator[TableRow]:
        """Rows of the file, without the joined columns."""
        return read_rows(self.path, self.columns, self.text)


def open_history_table(options: BenchmarkForm) -> HistoryTable:
    """Table of histories of a command; the joined tables are read into memory.

    Raises LampError, with the existing columns, where a column is missing, or is in two tables.
    """
    task = find_task(options.task)
    tables = [split_join(entry) for entry in options.join]
    check_encoding(options.encoding)
    texts = {options.histories: TextFormat(options.encoding, options.columns)}
    texts |= {path: TextFormat(options.encoding) for path, _ in tables}
    columns = {name: columns_of(name, text) for name, text in texts.items()}
    available = {column for some in columns.values() for column in some}
    patterns = _complete(parse_map(options.map, task), options, task, columns=available)
    wanted = {column for pattern in patterns.values() for column in pattern.columns} | {key for _, key in tables}
    owners = dict.fromkeys(columns[options.histories], options.histories)
    joins: list[JoinedTable] = []
    for path, key in tables:
        _check_key(path, key, columns[path], owners)
        added = wanted.intersection(columns[path]) - {key}
        if clash := sorted(added & owners.keys()):
            raise LampError(f"{path}: the column {clash[0]!r} is in {owners[clash[0]]} too; rename it in one of them")
        owners |= dict.fromkeys(added, path)
        joins.append(JoinedTable(path, key, added, read_lookup(path, key, added, texts[path])))
    return HistoryTable(options.histories, wanted, tuple(joins), patterns, texts[options.histories])


def _complete(
    mapped: Mapping[str, Pattern], options: BenchmarkForm, task: Task, *, columns: Collection[str]
) -> dict[str, Pattern]:
    """Patterns of all fields; an unmapped one has the column of its name. LampError for a missing column."""
    names = ["user", *task.fields]
    names += ["date"] * (options.split == "time" or "date" in columns)
    names += ["reference"] * task.cites
    names += ["input"] * (task.source == task.target)  # whose own text would be the answer
    patterns = {name: Pattern.of_column(name) for name in names} | {**mapped}
    for name, pattern in patterns.items():
        if missing := [column for column in pattern.columns if column not in columns]:
            remedy = "correct its --map" if name in mapped else f"name its column with --map {name}=COLUMN"
            raise LampError(
                f"{options.histories}: {name!r} needs a column {missing[0]!r}, which is missing; {remedy}; "
                f"the columns are {', '.join(sorted(columns))}"
            )
    return patterns


def _check_key(path: str, key: str, columns: Collection[str], owners: Collection[str]) -> None:
    for where, existing in ((path, columns), ("the rows to which it is joined", owners)):
        if key not in existing:
            raise LampError(f"--join {path}:{key}: no column {key!r} in {where}, which has {', '.join(existing)}")
