"""Small sentencepiece models, written as protocol buffer bytes."""

import struct

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

T5 = [("<pad>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<unk>", 0.0, UNKNOWN)]
MADLAD = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<2en>", 0.0, USER_DEFINED)]
WORDS = [("▁", -2.5), ("▁the", -2.0), ("▁good", -4.0), ("▁film", -4.5), ("s", -3.0), ("▁go", -5.0), ("od", -5.5)]
LETTERS = [(letter, -7.0 - place / 8) for place, letter in enumerate("abcdefghijklmnopqrtuvwxyzé日本.,!")]
PIECES = [(text, score, NORMAL) for text, score in WORDS + LETTERS]
BYTES = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]


def varint(number):
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def number(field, value):
    return varint(field << 3) + varint(value)


def data(field, value):
    value = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(value)) + value


def piece(text, score, kind):
    # Like sentencepiece, omits a field with its default value.
    return data(1, text) + varint(2 << 3 | 5) + struct.pack("<f", score) + (number(3, kind) if kind != NORMAL else b"")


def replacements(characters=b"\t\n", by=b" "):
    """A compiled table that replaces one-byte characters: a trie of 32-bit units, then the texts, each with a 0."""
    units = [0] * 1024
    units[0] = 256 << 10
    for character in characters:
        units[256 ^ character] = character | 1 << 8 | 512 << 10
    return struct.pack("<I", 4 * len(units)) + struct.pack(f"<{len(units)}I", *units) + by + b"\0"


def model(pieces, *, unknown=2, kind=1, characters=None, byte_fallback=0, single_spaces=1, space_before=1, trainer=b""):
    trainer = number(3, kind) + number(35, byte_fallback) + number(40, unknown) + trainer
    characters = replacements() if characters is None else characters
    normalizer = data(1, "nmt") + data(2, characters) + number(3, space_before) + number(4, single_spaces)
    return b"".join(data(1, piece(*one)) for one in pieces) + data(2, trainer) + data(3, normalizer)
