"""Words in numpy against str.split(), for any characters, lengths of words and hashes."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.retrieval import words
from lamp_jax.retrieval.words import group_words

SPACES = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]
PIECES = st.sampled_from(["a", "b", "\0", "\x01", "\x1b", "é", "’", "\ud83d", "😀", "\xff", "abcdefgh", "x" * 17])
TEXTS = st.lists(st.lists(PIECES | st.sampled_from(SPACES), max_size=12).map("".join), max_size=6)


def check(texts):
    """Asserts that words, their order and their groups are those of str.split()."""
    order, begins, lengths = group_words(texts)
    flat = [word for text in texts for word in text.split()]
    assert lengths.tolist() == [len(text.split()) for text in texts]
    groups = {}
    for place, word in enumerate(flat):
        groups.setdefault(word, []).append(place)
    found = []
    for place, begin in zip(order.tolist(), begins.tolist(), strict=True):
        found.append([place]) if begin else found[-1].append(place)
    assert sorted(found) == sorted(groups.values())


@given(TEXTS)
def test_words_are_those_of_split(texts):
    check(texts)


@given(st.lists(st.text(st.sampled_from("ab \0"), max_size=40), max_size=4))
def test_words_of_any_length_are_distinguished(texts):
    check(texts)


def test_every_white_space_of_unicode_separates():
    check([f"a{space}b{space}" for space in SPACES])
    check(["".join(f"{chr(code)}\u2028" for code in range(0x20, 0x3100) if not 0xD800 <= code < 0xE000)])


@pytest.mark.parametrize("size", range(1, 36))
def test_words_that_differ_in_one_byte_are_different(size):
    alike = ["a" * place + other + "a" * (size - place - 1) for place in range(size) for other in ("b", "\0")]
    check([" ".join(alike), " ".join(reversed(alike)), "a" * size])


def test_words_with_the_same_hash_are_hashed_again(monkeypatch):
    factors, group = [], words._group
    monkeypatch.setattr(words, "_FIRST_FACTOR", 1)  # short words then differ only in bits that make way for positions
    monkeypatch.setattr(words, "_group", lambda keys, factor: factors.append(factor) or group(keys, factor))
    check(["a b c d"])
    assert factors == [1, words._FACTOR]
