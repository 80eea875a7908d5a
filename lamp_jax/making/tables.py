"""How the rows of csv, jsonl and parquet files are read: as mappings from column to value, few at a time."""

import csv
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from lamp_jax.data.framing import BOM, parse_record
from lamp_jax.errors import LampError

Row = Mapping[str, Any]

_LONGEST_FIELD = 2**24
_LEADING_ROWS = 1000
_BATCH_ROWS = 4096


class Unusable(Exception):  # noqa: N818 (it says why a row is dropped)
    """Why nothing can be made of a row."""


def columns_of(path: str | Path) -> tuple[str, ...]:
    """The columns of a table; those of a jsonl file are the keys of its first 1000 rows.

    Raises LampError where there is no such file, or one in none of the three forms.
    """
    return _form_of(path).columns(Path(path))


def read_rows(path: str | Path, columns: Collection[str]) -> Iterator[Row]:
    """The rows, with these columns at least where they have them. LampError, with the row, where one is broken."""
    return _form_of(path).rows(Path(path), columns)


def read_lookup(path: str | Path, key: str, columns: Collection[str]) -> dict[str, Row]:
    """These columns of all rows, by the text in the column `key`. LampError where a text occurs twice."""
    found: dict[str, Row] = {}
    for number, row in enumerate(read_rows(path, {key, *columns}), 1):
        try:
            name = text_of(row.get(key))
        except Unusable as reason:
            raise LampError(f"{path}, row {number}: {key} is {reason}") from None
        if name in found:
            raise LampError(f"{path}, row {number}: {key} {name!r} occurs twice; a table to join has a row for each")
        found[name] = {column: row.get(column) for column in columns}
    return found


def text_of(value: Any, *, joint: str = ", ") -> str:
    """A value as text; "" for none and for NaN. The texts of a list are joined. Raises Unusable for other nests."""
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    if isinstance(value, list):
        return joint.join(map(text_of, value))
    if isinstance(value, dict | bytes):
        raise Unusable(f"a value of type {type(value).__name__}, which is no text")
    return str(value)


class _Form(NamedTuple):
    columns: Callable[[Path], tuple[str, ...]]
    rows: Callable[[Path, Collection[str]], Iterator[Row]]


def _form_of(path: str | Path) -> _Form:
    form = _FORMS.get(Path(path).suffix.lower())
    if form is None:
        raise LampError(f"{path}: rows are read from files named {', '.join(_FORMS)}; write it as one of them")
    if not Path(path).is_file():
        raise LampError(f"{path}: no such file")
    return form


def _csv_columns(path: Path) -> tuple[str, ...]:
    header = tuple(next(_csv_lines(path), ()))
    if not header:
        raise LampError(f"{path}: empty; its first line names the columns")
    if len(set(header)) < len(header):
        raise LampError(f"{path}: two columns have one name, among {', '.join(header)}; rename one")
    return header


def _csv_rows(path: Path, columns: Collection[str]) -> Iterator[Row]:
    header = _csv_columns(path)
    for number, values in enumerate(islice(_csv_lines(path), 1, None), 1):
        if len(values) != len(header):
            raise LampError(
                f"{path}, row {number}: {len(values)} values for {len(header)} columns; "
                "a text with a comma, a quotation mark or a line break stands in quotation marks"
            )
        yield dict(zip(header, values, strict=True))


def _csv_lines(path: Path) -> Iterator[list[str]]:
    """Header and rows. A row may be of several lines of the file; empty lines are passed over."""
    csv.field_size_limit(_LONGEST_FIELD)
    number = 0  # of the row, as the header is one too
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for line in filter(None, csv.reader(file, strict=True)):
                yield line
                number += 1
    except UnicodeDecodeError as error:
        raise LampError(f"{path}, soon after row {number - 1}: not UTF-8 ({error.reason}); write it as UTF-8") from None
    except csv.Error as error:
        raise LampError(f"{path}, row {number}: {error}; is a quotation mark not doubled, or not closed?") from None


def _jsonl_columns(path: Path) -> tuple[str, ...]:
    rows = islice(_jsonl_rows(path, ()), _LEADING_ROWS)
    columns = tuple(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        raise LampError(f"{path}: holds no rows")
    return columns


def _jsonl_rows(path: Path, columns: Collection[str]) -> Iterator[Row]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not (line := line.removeprefix(BOM).strip()):
                continue
            try:
                row = parse_record(line)
            except ValueError as error:
                raise LampError(f"{path}, line {number}: not whole JSON ({error}); each line is one object") from None
            if not isinstance(row, dict):
                raise LampError(f"{path}, line {number}: each line is one object; found {repr(row)[:40]}")
            yield row


def _parquet_columns(path: Path) -> tuple[str, ...]:
    return tuple(_open_parquet(path).schema_arrow.names)


def _parquet_rows(path: Path, columns: Collection[str]) -> Iterator[Row]:
    file = _open_parquet(path)
    wanted = [name for name in file.schema_arrow.names if name in columns]
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
        yield from batch.to_pylist()


def _open_parquet(path: Path) -> Any:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise LampError(f"{path}: reading parquet needs pyarrow; pip install pyarrow") from None
    try:
        # Not all of a row group at once, which may be the whole file.
        return ParquetFile(path, pre_buffer=False, memory_map=True)
    except ArrowInvalid as error:
        raise LampError(f"{path}: not a whole parquet file ({error}); make it again") from None


_FORMS = {
    ".csv": _Form(_csv_columns, _csv_rows),
    ".jsonl": _Form(_jsonl_columns, _jsonl_rows),
    ".parquet": _Form(_parquet_columns, _parquet_rows),
}
