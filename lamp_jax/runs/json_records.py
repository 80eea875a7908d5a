"""Byte offsets of the records of a JSON file, found in one pass that parses nothing, so that all cores can parse.

A file is a list of records, or an object with such a list under `golds`, the official format of outputs. The pass looks
only at quotation marks, backslashes and brackets, one block at a time. The contents of a record are checked by
`parse_record`.
"""

import json
import math
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import orjson

from lamp_jax.errors import LampError

_BLOCK = 2**20
_ENVELOPE = 2**20
_MAX_DEPTH = 100  # Deeper values cannot be written again, or shown.
_QUOTE, _BACKSLASH = ord('"'), ord("\\")
_OPENING, _BIT = np.uint8(ord("[")), np.uint8(ord("[") ^ ord("{"))
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")], _STEP[list(b"]}")] = 1, -1
BOM = b"\xef\xbb\xbf"
_OTHER_ENCODINGS = (b"\xff\xfe", b"\xfe\xff", b"[\0", b"{\0", b"\0[", b"\0{")
_SPACE = b" \t\r\n"
_SEPARATOR = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*")
_GOLDS = re.compile(rb'"golds"[ \t\r\n]*:[ \t\r\n]*\[\Z')
_SHOWN_CHARACTERS = 40


class RawRecord(NamedTuple):
    """An unparsed record of a JSON file."""

    number: int
    offset: int
    """Offset of its first byte in the file."""
    content: bytes


class RecordScanner:
    """Unparsed records of a file, in its order. `envelope`, once all are read: the file's JSON without the records.

    Iterating raises LampError, with the file, the record and the byte, where the file is not a list of records.
    `content`, such as a decompressed stream, is read in place of the file; it need not be seekable.
    """

    def __init__(self, path: str | Path, content: IO[bytes] | None = None):
        self.path = path
        self.envelope: Any = None
        self._content = content

    def __iter__(self) -> Iterator[RawRecord]:
        if self._content is not None:
            yield from self._scan(_Reader(self._content))
            return
        try:
            with open(self.path, "rb") as file:
                yield from self._scan(_Reader(file))
        except FileNotFoundError:
            raise LampError(f"{self.path}: no such file") from None
        except IsADirectoryError:
            raise LampError(f"{self.path}: a directory, where a JSON file is expected") from None

    def _scan(self, reader: "_Reader") -> Iterator[RawRecord]:
        base = self._choose_base(reader)
        brackets = reader.brackets()
        head = self._find_list(reader, brackets, base)
        number, start = 0, 0
        for at, before, after in brackets:
            if reader.deepest > _MAX_DEPTH:
                raise LampError(f"{self.path}, near byte {at}: nested more than {_MAX_DEPTH} deep; make the file again")
            if (before, after) == (base, base + 1):
                self._check_gap(reader.take(at), number, at)
                start = at
            elif (before, after) == (base + 1, base):
                yield RawRecord(number, start, reader.take(at + 1))
                number += 1
            elif after < base:
                gap = reader.take(at)
                if gap.strip(_SPACE):
                    raise self._gap_error(gap, number, at - len(gap))
                self.envelope = self._parse_envelope(head + reader.rest(_ENVELOPE))
                return
        raise self._truncated_error(f"after {number} complete records, at byte {reader.end}")

    def _choose_base(self, reader: "_Reader") -> int:
        """Nesting depth of the records: 1 in a list, 2 in an object's list."""
        start = reader.skip_space()
        if start[:1] not in (b"[", b"{"):
            hint = "; is the file UTF-16? Write it as UTF-8" if start.startswith(_OTHER_ENCODINGS) else ""
            raise LampError(
                f"{self.path}: neither a JSON list nor an object; the file begins with {start[:20]!r}{hint}"
            )
        if start.startswith(_OTHER_ENCODINGS):
            raise LampError(f"{self.path}: is the file UTF-16? Write it as UTF-8")
        return 1 if start[:1] == b"[" else 2

    def _find_list(self, reader: "_Reader", brackets: Iterator[tuple[int, int, int]], base: int) -> bytes:
        """Bytes up to the list of records, opening bracket included."""
        for at, before, after in brackets:
            if after == base or after < before:
                head = reader.take(at + 1)
                if base == 1 or _GOLDS.search(head):
                    return head
                raise LampError(
                    f"{self.path}: an object whose first list is not 'golds'; expected a list of records, or an object "
                    f"with 'golds', found {head[:_SHOWN_CHARACTERS]!r}"
                )
        raise self._truncated_error(f"at byte {reader.end}")

    def _parse_envelope(self, around: bytes) -> Any:
        try:
            envelope = parse_record(around)
        except ValueError as error:
            what = f"invalid JSON around the records ({error})"
            raise LampError(f"{self.path}: {what}; does something follow the list? Make the file again") from None
        return envelope

    def _check_gap(self, gap: bytes, number: int, at: int) -> None:
        if not (_SEPARATOR.fullmatch(gap) if number else not gap.strip(_SPACE)):
            raise self._gap_error(gap, number, at - len(gap))

    def _gap_error(self, gap: bytes, number: int, at: int) -> LampError:
        found = (
            gap.strip(_SPACE + b",")[:_SHOWN_CHARACTERS].decode("utf-8", "replace")
            or gap.decode("utf-8", "replace").strip()
        )
        return LampError(
            f"{self.path}, record {number}, byte {at}: expected an object{' after a comma' if number else ''}, "
            f"found {found!r}; make the file again"
        )

    def _truncated_error(self, where: str) -> LampError:
        return LampError(f"{self.path}: truncated JSON, which ends {where}; download or make the file again")


class _Reader:
    """Reader of a file in blocks: its bytes not yet taken, and its brackets of depth 0 to 2."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.end = 0  # offset of the end of the bytes read
        self.deepest = 0  # depth of the brackets read
        self._bytes = bytearray()
        self._ahead = b""  # bytes read to inspect the beginning
        self._depth, self._in_string, self._escaped = 0, False, False

    def skip_space(self) -> bytes:
        """The first bytes after a byte order mark and white space; they are not consumed."""
        start = self.file.read(64)
        if start.startswith(BOM):
            self.end, start = len(BOM), start[len(BOM) :]
        while not start.strip(_SPACE) and (more := self.file.read(64)):
            self.end += len(start)
            start = more
        self._ahead = start.lstrip(_SPACE)
        self.end += len(start) - len(self._ahead)
        return self._ahead

    def take(self, end: int) -> bytes:
        """Bytes from the end of the last call to `end`, an offset in the file."""
        length = end - (self.end - len(self._bytes))
        taken = bytes(memoryview(self._bytes)[:length])
        del self._bytes[:length]
        return taken

    def rest(self, most: int) -> bytes:
        """At most `most` of the remaining bytes."""
        return bytes(self._bytes[:most]) + self.file.read(max(most - len(self._bytes), 0))

    def brackets(self) -> Iterator[tuple[int, int, int]]:
        """Offset of each bracket outside of strings, with the depth before and after it, of which one is at most 2."""
        while block := self._ahead or self.file.read(_BLOCK):
            self._ahead = b""
            offsets, steps = self._find_brackets(block)
            after = self._depth + np.cumsum(steps)
            shallow = np.minimum(after, after - steps) <= 2
            start, self.end = self.end, self.end + len(block)
            self._bytes += block
            self._depth = int(after[-1]) if len(after) else self._depth
            self.deepest = max(self.deepest, int(after.max(initial=0)))
            rows = (start + offsets[shallow], (after - steps)[shallow], after[shallow])
            yield from zip(*(row.tolist() for row in rows), strict=True)

    def _find_brackets(self, block: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Offsets in the block of the brackets outside of strings, and +1 for an opening, -1 for a closing one."""
        octets = np.frombuffer(block, np.uint8)
        # Quotation marks, and brackets, backslashes and bars: `[\\]` and `{|}` are consecutive, and one bit apart.
        offsets = np.flatnonzero(((octets & ~_BIT) - _OPENING <= 2) | (octets == _QUOTE))
        kinds = octets[offsets]
        quotes = kinds == _QUOTE
        slashes = offsets[kinds == _BACKSLASH]
        if len(slashes) or self._escaped:
            quotes &= ~self._find_escaped(slashes, len(block))[offsets]
        inside = np.cumsum(quotes) % 2 == (0 if self._in_string else 1)
        self._in_string = bool(inside[-1]) if len(inside) else self._in_string
        steps = np.where(inside, 0, _STEP[kinds])
        return offsets[steps != 0], steps[steps != 0].astype(np.int64)

    def _find_escaped(self, slashes: np.ndarray, size: int) -> np.ndarray:
        """For each byte of a block, whether it follows an unescaped backslash; `slashes` are offsets of backslashes."""
        escaped = np.zeros(size + 1, bool)
        escaped[0] = self._escaped
        numbers = np.arange(len(slashes))
        begins = np.diff(slashes, prepend=-2) != 1
        # Of a run of backslashes every second one is escaped, and so is the byte after each of the others.
        run = np.maximum.accumulate(np.where(begins, numbers, 0))
        first_escaped = self._escaped & (slashes[run] == 0) if len(slashes) else np.array([], bool)
        escaped[slashes[(numbers - run) % 2 == first_escaped] + 1] = True
        self._escaped = bool(escaped[size])
        return escaped[:size]


def parse_record(raw: bytes) -> Any:
    """Value of a record's JSON. ValueError, with the position, for invalid JSON, which includes NaN and infinity.

    Lone surrogates, legal in JSON and present in tweets, are kept. ValueError for a repeated key, of which JSON parsers
    keep one or the other.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        value = None
    else:
        if _count_quotes(raw) == 2 * _count_strings(value):  # otherwise a key occurs twice
            return value
    try:  # The standard library accepts lone surrogates and long integers, sees repeated keys, and explains errors.
        text = raw.decode("utf-8", "surrogatepass")
        found = json.loads(
            text, parse_constant=_reject_constant, parse_float=_read_number, object_pairs_hook=unique_keys
        )
        return found if value is None else value
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Object of these members, for json's `object_pairs_hook`. ValueError for a repeated key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated[:_SHOWN_CHARACTERS]!r} occurs twice in one object")
    return found


def _count_quotes(raw: bytes) -> int:
    """Number of the quotation marks around strings in valid JSON."""
    quotes = int(np.count_nonzero(np.frombuffer(raw, np.uint8) == _QUOTE))
    if b"\\" not in raw:
        return quotes
    return quotes - raw.replace(b"\\\\", b"").count(b'\\"')


def _count_strings(value: Any) -> int:
    """Number of the strings in a JSON value, keys included."""
    count, level = 0, [value]
    while level:  # the values of one depth after another
        kinds = [*map(type, level)]
        found = {*kinds}
        count += kinds.count(str) if str in found else 0
        objects = [value for value in level if type(value) is dict] if dict in found else []
        lists = [value for value in level if type(value) is list] if list in found else []
        count += sum(map(len, objects))
        level = [*chain.from_iterable(map(dict.values, objects)), *chain.from_iterable(lists)]
    return count


def _reject_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _read_number(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:_SHOWN_CHARACTERS]} is too large for a floating-point number")
    return number
