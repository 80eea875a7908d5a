"""Words of many texts, equal words grouped: str.split() and counting in numpy, on the texts' UTF-8 bytes.

A Python string per word, its hash and a dictionary entry cost about 250 ns a word; this costs about 75 ns.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

_FACTOR = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd: multiplication permutes the 64-bit integers
_FIRST_FACTOR = _FACTOR
_KEY = 8  # bytes of a key
_PADDING = bytes(2 * _KEY)
_MASKS = np.array([2 ** (8 * size) - 1 for size in range(_KEY + 1)], np.uint64)
_BLANK = ord(" ")  # no other white space of ASCII is greater
_FIRST_LEAD = 0xC2  # first byte of a character of several bytes


class Words(NamedTuple):
    """Words of N texts, as str.split() separates them, T in total. A word's position counts over all texts."""

    order: np.ndarray
    """Positions of all words, equal words together, each group ascending, int [T]."""
    begins: np.ndarray
    """Whether a group begins at this place of `order`, bool [T]."""
    lengths: np.ndarray
    """Words per text, int [N]."""


def group_words(texts: Sequence[str]) -> Words:
    """Groups of equal words of all texts. The order of the groups has no meaning."""
    content, sizes = _encode(texts)
    spaces = _find_spaces(content)
    starts = spaces[:-1] + 1
    bytes_of = spaces[1:] - starts
    if not bytes_of.all():  # white space of several characters
        starts, bytes_of = starts[bytes_of > 0], bytes_of[bytes_of > 0]
    lengths = np.searchsorted(starts, np.cumsum(sizes + 1))
    lengths[1:] -= lengths[:-1].copy()
    keys, factor = _keys(content, starts, bytes_of), _FIRST_FACTOR
    while (grouped := _group(keys, factor)) is None:
        factor = factor * _FACTOR % 2**64
    return Words(*grouped, lengths)


def _encode(texts: Sequence[str]) -> tuple[bytes, np.ndarray]:
    """All texts in UTF-8, white space before and after each; their sizes in bytes, int [N]."""
    joined = "\n".join(("", *texts, ""))
    if joined.isascii():
        content, sizes = joined.encode(), map(len, texts)
    else:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        content, sizes = b"\n".join((b"", *encoded, b"")), map(len, encoded)
    # NUL, which ends keys, becomes a byte that UTF-8 does not use.
    return content.replace(b"\0", b"\xff") + _PADDING, np.fromiter(sizes, np.int64, len(texts))


def _find_spaces(content: bytes) -> np.ndarray:
    """Offsets of the bytes of white space, ascending."""
    octets = np.frombuffer(content, np.uint8)
    filled = octets[: -len(_PADDING)]
    spaces = np.flatnonzero(filled <= _BLANK)
    if np.count_nonzero(filled < _BLANK) != np.count_nonzero(filled == ord("\n")):  # also other control characters
        spaces = spaces[_space_bytes()[octets[spaces]]]
    if content.isascii():
        return spaces
    leads = np.flatnonzero(filled >= _FIRST_LEAD)
    codes = octets[leads].astype(np.int64) << 16 | octets[leads + 1].astype(np.int64) << 8 | octets[leads + 2]
    two, three = (leads[np.isin(code, wide)] for code, wide in zip((codes >> 8, codes), _wide_spaces(), strict=True))
    return np.sort(np.concatenate((spaces, two, two + 1, three, three + 1, three + 2)))


@cache
def _space_bytes() -> np.ndarray:
    return np.array([chr(byte).isspace() for byte in range(_BLANK + 1)])


@cache
def _wide_spaces() -> list[list[int]]:
    """White space outside of ASCII: the characters of two bytes and those of three, as big-endian integers."""
    found = [chr(code).encode() for code in range(0x80, 0x3001) if chr(code).isspace()]
    return [[int.from_bytes(char, "big") for char in found if len(char) == size] for size in (2, 3)]


class _Keys(NamedTuple):
    """Two numbers of each word, which are equal for equal words only.

    They are its first and second eight bytes, filled with NUL. Words of more bytes are numbered instead, from 1; a
    small number is the first key of no other word whose second key is not 0.
    """

    first: np.ndarray  # uint64 [T]
    second: np.ndarray  # uint64 [T]
    long: np.ndarray  # positions of the words whose second key is not 0


def _keys(content: bytes, starts: np.ndarray, sizes: np.ndarray) -> _Keys:
    at = np.ndarray((len(content) - _KEY + 1,), "<u8", content, 0, (1,))
    first, second = at[starts], np.zeros(len(starts), np.uint64)
    first &= _MASKS.take(sizes, mode="clip")
    long = np.flatnonzero(sizes > _KEY)
    sizes = sizes[long]
    second[long] = at[starts[long] + _KEY] & _MASKS.take(sizes - _KEY, mode="clip")
    numbers: dict[bytes, int] = {}
    for place, size in zip(long[sizes > 2 * _KEY].tolist(), sizes[sizes > 2 * _KEY].tolist(), strict=True):
        word = content[starts[place] : starts[place] + size]
        first[place], second[place] = numbers.setdefault(word, 1 + len(numbers)), 1
    return _Keys(first, second, long)


def _group(keys: _Keys, factor: int) -> tuple[np.ndarray, np.ndarray] | None:
    """`order` and `begins` of Words by hashes of the keys; None where different words have the same hash."""
    hashes = keys.first * np.uint64(factor)
    mixed = hashes[keys.long]
    hashes[keys.long] = ((mixed ^ mixed >> np.uint64(29)) + keys.second[keys.long]) * np.uint64(factor)
    # To sort integers is several times as fast as argsort: a hash's low bits are replaced by the position.
    low = np.uint64(2 ** len(hashes).bit_length() - 1)
    hashes &= ~low
    hashes |= np.arange(len(hashes), dtype=np.uint64)
    hashes.sort()
    order = (hashes & low).view(np.int64)
    begins, differs = _changes(hashes & ~low), _changes(keys.first[order])
    if len(keys.long):
        differs |= _changes(keys.second[order])
    return (order, begins) if np.array_equal(begins, differs) else None


def _changes(values: np.ndarray) -> np.ndarray:
    """Whether each value differs from the one before it; true for the first."""
    changes = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=changes[1:])
    return changes
