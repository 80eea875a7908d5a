"""Streaming readers of csv, JSON-lines and parquet files, compressed or not: rows as mappings from column to value."""

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from lamp_jax.errors import LampError
from lamp_jax.runs.json_records import BOM, RecordScanner, parse_record

TableRow = Mapping[str, Any]

_MAX_FIELD = 2**24
_LEADING_ROWS = 1000
_BATCH_ROWS = 4096
_BLOCK = 2**16
_UTF8_NAMES = {"utf-8", "utf-8-sig"}
# Python's encodings for host names and for its own source.
_NOT_FOR_FILES = {"idna", "punycode", "unicode-escape", "raw-unicode-escape"}


class UnusableValue(Exception):  # noqa: N818 (it is the reason for dropping a row)
    """Reason for dropping a row; `example` is the value, for messages."""

    def __init__(self, reason: str, example: str = ""):
        super().__init__(reason)
        self.example = example


class TextFormat(NamedTuple):
    """Encoding of a table and, for a csv without a header, the names of its columns."""

    encoding: str = "utf-8"
    names: tuple[str, ...] = ()


UTF8 = TextFormat()


def check_encoding(encoding: str) -> None:
    """LampError for an encoding that Python does not know, or that is not for files."""
    try:
        known = codecs.lookup(encoding).name not in _NOT_FOR_FILES
        "".encode(encoding)  # LookupError for encodings from bytes to bytes, such as hex
    except (LookupError, ValueError):
        known = False
    if not known:
        raise LampError(
            f"--encoding {encoding!r}: not a file encoding that Python knows; give utf-8, latin-1, cp1252 or another"
        )


def columns_of(path: str | Path, text: TextFormat = UTF8) -> tuple[str, ...]:
    """Columns of a table; those of JSON lines are the keys of the first 1000 rows.

    Raises LampError for a missing file, or one of an unknown format.
    """
    return _format_of(path).columns(Path(path), text)


def read_rows(path: str | Path, columns: Collection[str], text: TextFormat = UTF8) -> Iterator[TableRow]:
    """Rows, with at least these columns where they have them. LampError, with the row, for an invalid one."""
    return _format_of(path).rows(Path(path), columns, text)


def read_lookup(path: str | Path, key: str, columns: Collection[str], text: TextFormat = UTF8) -> dict[str, TableRow]:
    """These columns of all rows, by the text in the column `key`. LampError for a repeated key."""
    found: dict[str, TableRow] = {}
    for number, row in enumerate(read_rows(path, {key, *columns}, text), 1):
        try:
            name = text_of(row.get(key))
        except UnusableValue as reason:
            raise LampError(f"{path}, row {number}: {key} is {reason}") from None
        if name in found:
            raise LampError(
                f"{path}, row {number}: {key} {name!r} occurs twice; a table to join must have one row for each key"
            )
        found[name] = {column: row.get(column) for column in columns}
    return found


def text_of(value: Any, *, separator: str = ", ") -> str:
    """Value as text; "" for None and NaN. Texts of a list are joined. Raises UnusableValue for objects and bytes."""
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    if isinstance(value, list):
        return separator.join(map(text_of, value))
    if isinstance(value, dict | bytes):
        raise UnusableValue(f"a value of type {type(value).__name__}, which is not a text")
    return str(value)


class _TableFormat(NamedTuple):
    columns: Callable[[Path, TextFormat], tuple[str, ...]]
    rows: Callable[[Path, Collection[str], TextFormat], Iterator[TableRow]]


def _format_of(path: str | Path) -> _TableFormat:
    name = Path(path).name.lower()
    form = next((form for ending, form in _FORMATS.items() if name.endswith(ending)), None)
    if form is None:
        raise LampError(f"{path}: rows are read from files named {', '.join(_FORMATS)}; write it as one of them")
    if not Path(path).is_file():
        raise LampError(f"{path}: no such file")
    return form


@contextmanager
def _open_table(path: Path) -> Iterator[Any]:
    """Bytes of a file, decompressed where its name ends in `.gz`. LampError for an incomplete gzip file."""
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise LampError(f"{path}: not a complete gzip file ({error}); download or make it again") from None


def _csv_columns(path: Path, text: TextFormat) -> tuple[str, ...]:
    first = tuple(next(_csv_lines(path, text), ()))
    header = text.names or first
    if not first:
        raise LampError(f"{path}: empty; the first line must name the columns, or give --columns")
    if len(set(header)) < len(header):
        where = "--columns" if text.names else path
        remedy = "rename one of them" + (
            "" if text.names else "; a file without a header needs --columns NAME NAME ..."
        )
        raise LampError(f"{where}: two columns have the same name, among {', '.join(header)}; {remedy}")
    return header


def _csv_rows(path: Path, columns: Collection[str], text: TextFormat) -> Iterator[TableRow]:
    header = _csv_columns(path, text)
    for number, values in enumerate(islice(_csv_lines(path, text), 0 if text.names else 1, None), 1):
        if len(values) != len(header):
            raise LampError(
                f"{path}, row {number}: {len(values)} values for {len(header)} columns; "
                "put a text with a comma, a quotation mark or a line break in quotation marks"
            )
        yield dict(zip(header, values, strict=True))


def _csv_lines(path: Path, text: TextFormat) -> Iterator[list[str]]:
    """Header and rows. A row may span several lines of the file; empty lines are skipped."""
    csv.field_size_limit(_MAX_FIELD)
    tabs = path.name.lower().removesuffix(".gz").endswith(".tsv")
    number = 1 if text.names else 0  # of the row; the header is row 0
    try:
        with _open_table(path) as file:
            lines = io.TextIOWrapper(file, encoding=_with_mark(text.encoding), newline="")
            for line in filter(None, csv.reader(lines, delimiter="\t" if tabs else ",", strict=True)):
                yield line
                number += 1
    except UnicodeError as error:
        where = f"soon after row {number - 1}" if number > 1 else "in the first lines"
        raise _undecodable(path, where, text, error) from None
    except csv.Error as error:
        where = f"row {number}" if number else "header"
        raise LampError(f"{path}, {where}: {error}; is a quotation mark not doubled, or not closed?") from None


def _with_mark(encoding: str) -> str:
    """Encoding that accepts a byte order mark of UTF-8."""
    return "utf-8-sig" if codecs.lookup(encoding).name in _UTF8_NAMES else encoding


def _undecodable(path: Path, where: str, text: TextFormat, error: UnicodeError) -> LampError:
    name = "UTF-8" if codecs.lookup(text.encoding).name in _UTF8_NAMES else text.encoding
    return LampError(f"{path}, {where}: not {name} ({error}); write it as UTF-8, or give --encoding, such as latin-1")


def _jsonl_columns(path: Path, text: TextFormat) -> tuple[str, ...]:
    rows = islice(_jsonl_rows(path, (), text), _LEADING_ROWS)
    columns = tuple(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        raise LampError(f"{path}: contains no rows")
    return columns


def _jsonl_rows(path: Path, columns: Collection[str], text: TextFormat) -> Iterator[TableRow]:
    if text.names:
        raise LampError(
            f"{path}: --columns is for csv and tsv files, because JSON rows name their columns; leave it out"
        )
    number = 0
    try:
        with _open_table(path) as file, _in_utf8(file, text.encoding) as content:
            if path.name.lower().removesuffix(".gz").endswith(".json") and _is_list(path, text):
                for number, _, record in RecordScanner(path, content):
                    yield _object(record, f"{path}, row {number + 1}")
                return
            for number, line in enumerate(content, 1):
                if line := line.removeprefix(BOM).strip():
                    yield _object(line, f"{path}, line {number}")
    except UnicodeError as error:
        raise _undecodable(path, f"soon after row {number}" if number else "in the first rows", text, error) from None


def _is_list(path: Path, text: TextFormat) -> bool:
    with _open_table(path) as file, _in_utf8(file, text.encoding) as content:
        return content.read(_BLOCK).removeprefix(BOM).lstrip()[:1] == b"["


def _in_utf8(file: Any, encoding: str) -> io.BufferedReader:
    """Text of a file as UTF-8. Files in UTF-8 are passed through, so that the JSON parser checks them."""
    raw = file if codecs.lookup(encoding).name in _UTF8_NAMES else _InUtf8(io.TextIOWrapper(file, encoding, newline=""))
    return io.BufferedReader(raw, _BLOCK)


class _InUtf8(io.RawIOBase):
    """Binary stream of a text in UTF-8."""

    def __init__(self, text: io.TextIOWrapper):
        self._text, self._rest = text, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or self._text.read(_BLOCK).encode("utf-8", "surrogatepass")
        taken, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _object(line: bytes, where: str) -> TableRow:
    """Row of a JSON object."""
    try:
        row = parse_record(line)
    except ValueError as error:
        remedy = "; give another encoding with --encoding" if "UTF-8" in str(error) else ""
        raise LampError(f"{where}: invalid JSON ({error}); each line must be an object{remedy}") from None
    if not isinstance(row, dict):
        remedy = "; a JSON list must be in a file named .json or .json.gz" if isinstance(row, list) else ""
        raise LampError(f"{where}: each line must be an object; found {repr(row)[:40]}{remedy}")
    return row


def _parquet_columns(path: Path, text: TextFormat) -> tuple[str, ...]:
    with _complete_parquet(path):
        return tuple(_open_parquet(path).schema_arrow.names)


def _parquet_rows(path: Path, columns: Collection[str], text: TextFormat) -> Iterator[TableRow]:
    with _complete_parquet(path):
        file = _open_parquet(path)
        wanted = [name for name in file.schema_arrow.names if name in columns]
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
            yield from batch.to_pylist()


def _open_parquet(path: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise LampError(f"{path}: reading parquet needs pyarrow; pip install pyarrow") from None
    # pre_buffer would read a complete row group at once, which may be the entire file.
    return ParquetFile(path, pre_buffer=False, memory_map=True)


@contextmanager
def _complete_parquet(path: Path) -> Iterator[None]:
    """Context in which pyarrow's errors for damaged files, of many types, become LampError."""
    try:
        yield
    except (OSError, ValueError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno:  # such as a file that may not be read
            raise
        raise LampError(f"{path}: not a complete parquet file ({error}); make it again") from None


_CSV, _JSONL = _TableFormat(_csv_columns, _csv_rows), _TableFormat(_jsonl_columns, _jsonl_rows)
_FORMATS = {".parquet": _TableFormat(_parquet_columns, _parquet_rows)}
_FORMATS |= {f"{ending}{gz}": _CSV for ending in (".csv", ".tsv") for gz in ("", ".gz")}
_FORMATS |= {f"{ending}{gz}": _JSONL for ending in (".jsonl", ".ndjson", ".json") for gz in ("", ".gz")}
