"""Tokenizers from `spiece.model`: the ids of the same tokenizer's tokenizer.json."""

import contextlib
import json
import os
import shutil
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_jax.errors import LampError
from lamp_jax.inputs.tokenizer import load_tokenizer
from tests.examples import examples
from tests.inputs.spiece import BYTES, MADLAD, PIECES, T5, model, number, replacements

SHARED = Path(os.environ.get("SHARED", Path(__file__).parents[3] / "shared")) / "tokenizers" / "t5"
SETTINGS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "tokenizer_class": "T5Tokenizer"}

PARTS = (
    "the",
    " good",
    "film",
    "films",
    " ",
    "  ",
    "\t",
    "\n",
    "\u00a0",
    "\u3000",
    "\u2028",
    "\u0085",
    "\u200b",
    "\x00",
)
PARTS += ("日本", "語。", "😀", "👩‍👩‍👧", "é", "e\u0301", "ﬁ", "ğ", "▁", ".", "!?", "a" * 300, "12", "good " * 60)
SPECIAL = ("</s>", "<pad>", "<unk>", "<extra_id_0>", "<extra_id_99>", " </s> ", "<extra_id_5>the", "<extra_id_x>")
TEXTS = st.lists(st.sampled_from(PARTS + SPECIAL) | st.text(max_size=8), max_size=12).map("".join)


def make(directory, content, **values):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "spiece.model").write_bytes(content)
    (directory / "tokenizer_config.json").write_text(json.dumps(SETTINGS | values), encoding="utf-8")
    return directory


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same small vocabulary as spiece.model, and as the tokenizer.json that transformers makes of its pieces."""
    from transformers import T5Tokenizer

    folder = tmp_path_factory.mktemp("both")
    pieces = [(text, score) for text, score, _ in T5 + PIECES]
    pieces += [(f"<extra_id_{n}>", 0.0) for n in reversed(range(100))]
    theirs = T5Tokenizer(vocab=pieces, _spm_precompiled_charsmap=replacements())
    theirs.save_pretrained(folder / "json")
    assert (folder / "json" / "tokenizer.json").exists()
    return load_tokenizer(make(folder / "spm", model(T5 + PIECES), extra_ids=100)), load_tokenizer(folder / "json")


@given(text=TEXTS)
@settings(max_examples=examples(300))
def test_ids_are_those_with_a_tokenizer_json(both, text):
    ours, theirs = both
    assert ours(text).input_ids == theirs(text).input_ids
    assert ours.decode(ours(text).input_ids) == theirs.decode(theirs(text).input_ids)


@cache
def shared_tokenizers(directory):
    shutil.copy(SHARED / "spiece.model", directory)
    make(directory, (SHARED / "spiece.model").read_bytes(), extra_ids=100)
    return load_tokenizer(directory), load_tokenizer(SHARED)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    if not (SHARED / "spiece.model").exists():
        pytest.skip(f"T5's own vocabulary is not at {SHARED}")
    return shared_tokenizers(tmp_path_factory.mktemp("real"))


@given(text=TEXTS)
@settings(max_examples=examples(500))
def test_ids_of_t5s_own_vocabulary_are_those_with_its_tokenizer_json(real, text):
    ours, theirs = real
    assert ours(text).input_ids == theirs(text).input_ids


def test_special_tokens_are_those_of_t5(both):
    for tokenizer in both:
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
        assert len(tokenizer) == len(T5 + PIECES) + 100
        assert tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_99>"]) == [
            len(tokenizer) - 1,
            len(tokenizer) - 100,
        ]
        text = tokenizer("the good</s> films").input_ids
        assert tokenizer.convert_ids_to_tokens(text) == ["▁the", "▁good", "</s>", "▁film", "s", "</s>"]
        assert tokenizer.decode(text, skip_special_tokens=True) == "the good films"


def test_a_saved_tokenizer_gives_the_same_ids(tmp_path, both):
    from transformers import AutoTokenizer

    both[0].save_pretrained(tmp_path)
    for again in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(str(tmp_path))):
        for text in ("the good film", "films<extra_id_3>  the\tgood", "", "日本語 😀"):
            assert again(text).input_ids == both[0](text).input_ids


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ({}, 100),
        ({"extra_ids": 0}, 0),
        ({"extra_ids": 7}, 7),
        ({"additional_special_tokens": [f"<extra_id_{n}>" for n in range(3)]}, 3),
        ({"extra_ids": 3, "additional_special_tokens": [f"<extra_id_{n}>" for n in range(3)]}, 3),
    ],
)
def test_the_number_of_sentinels_is_that_of_the_settings(tmp_path, values, count):
    tokenizer = load_tokenizer(make(tmp_path, model(T5 + PIECES), **values))
    assert len(tokenizer) == len(T5 + PIECES) + count
    if count:
        assert ids(tokenizer, "<extra_id_0>") == [len(tokenizer) - 1]


def test_a_word_after_a_special_token_gets_a_space_with_legacy_settings(tmp_path):
    found = {}
    for legacy in (True, None, False):
        tokenizer = load_tokenizer(make(tmp_path, model(T5 + PIECES), legacy=legacy))
        found[legacy] = [tokenizer.convert_ids_to_tokens(ids(tokenizer, text)) for text in ("the</s>s", "the</s> s")]
        assert tokenizer.convert_ids_to_tokens(ids(tokenizer, " the  good\tfilm ")) == ["▁the", "▁good", "▁film"]
    assert found[True] == found[None] == [["▁the", "</s>", "▁", "s"]] * 2
    assert found[False] == [["▁the", "</s>", "s"], ["▁the", "</s>", "▁", "s"]]


def test_the_unknown_piece_and_user_defined_pieces_are_those_of_the_model(tmp_path):
    """As in MADLAD-400: <unk> 0, padding <s> 1, </s> 2, and a piece for each language."""
    pieces = MADLAD + PIECES
    directory = make(tmp_path, model(pieces, unknown=0), extra_ids=0, pad_token="<s>")
    tokenizer = load_tokenizer(directory)
    text = tokenizer("<2en>the 語").input_ids
    assert tokenizer.convert_ids_to_tokens(text) == ["<2en>", "▁the", "▁", "<unk>", "</s>"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    # transformers reads such a tokenizer.json as a T5's, whose unknown piece is 2.
    tokenizer.save_pretrained(tmp_path / "json")
    path = tmp_path / "json" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "T5Tokenizer"}), encoding="utf-8")
    assert load_tokenizer(tmp_path / "json")("<2en>the 語").input_ids == text


def test_bytes_are_tokens_if_the_model_has_byte_fallback(tmp_path):
    tokenizer = load_tokenizer(make(tmp_path, model(T5 + BYTES + PIECES, byte_fallback=1), extra_ids=0))
    text = ids(tokenizer, "the 語")
    assert tokenizer.convert_ids_to_tokens(text) == ["▁the", "▁", "<0xE8>", "<0xAA>", "<0x9E>"]
    assert tokenizer.decode(text) == "the 語"


def test_spaces_are_kept_where_the_model_keeps_them(tmp_path):
    pieces = [*T5, *PIECES, ("▁▁", -3.0, 1)]
    tokenizer = load_tokenizer(make(tmp_path, model(pieces, single_spaces=0, space_before=0), extra_ids=0))
    assert tokenizer.convert_ids_to_tokens(ids(tokenizer, "s  s")) == ["s", "▁▁", "s"]
    spaces = load_tokenizer(make(tmp_path, model(pieces, characters=b""), extra_ids=0))
    assert spaces.convert_ids_to_tokens(ids(spaces, "  the   good ")) == ["▁the", "▁good"]


def test_a_file_truncated_anywhere_is_a_named_error(tmp_path):
    content = model(T5 + PIECES[:6], characters=b"")
    assert load_tokenizer(make(tmp_path, content))
    for length in range(len(content)):
        with pytest.raises(LampError, match=r"spiece\.model: not a complete sentencepiece model"):
            load_tokenizer(make(tmp_path, content[:length]))


@given(place=st.integers(0, 10_000), value=st.integers(0, 255))
@settings(max_examples=examples(150))
def test_any_changed_byte_gives_a_tokenizer_or_a_named_error(tmp_path_factory, place, value):
    content = bytearray(model(T5 + PIECES, characters=b""))
    content[place % len(content)] = value
    directory = make(tmp_path_factory.getbasetemp() / "changed", bytes(content))
    with contextlib.suppress(LampError):
        load_tokenizer(directory)("the good film")


@pytest.mark.parametrize(
    ("content", "values", "message"),
    [
        (model(T5 + PIECES, kind=2), {}, r"spiece\.model: a sentencepiece model of kind BPE"),
        (model(T5 + PIECES, unknown=500), {}, r"spiece\.model: its unknown piece has the id 500"),
        (model(T5 + PIECES, trainer=number(24, 1)), {}, r"spiece\.model: its representation of spaces differs"),
        (model(T5 + PIECES, characters=b"text"), {}, r"spiece\.model: cannot be used as a tokenizer"),
        (model(T5 + PIECES), {"eos_token": "<end>"}, r"tokenizer_config\.json: eos_token '<end>' is not a piece"),
        (model(T5 + PIECES), {"extra_ids": -1}, r"tokenizer_config\.json: extra_ids -1"),
        (model(T5 + PIECES), {"extra_ids": "many"}, r"tokenizer_config\.json: extra_ids 'many'"),
        (model(T5 + PIECES), {"legacy": "no"}, r"tokenizer_config\.json: legacy 'no'"),
        (
            model(T5 + PIECES),
            {"extra_ids": 9, "additional_special_tokens": ["<extra_id_0>"]},
            r"tokenizer_config\.json: extra_ids is 9, but 1 of them",
        ),
        (
            model(T5 + PIECES),
            {"tokenizer_class": "AlbertTokenizer"},
            r"spiece\.model of a AlbertTokenizer is not",
        ),
        (
            model(T5 + PIECES),
            {"added_tokens_decoder": {"90": {"content": "<new>", "special": True}}},
            r"'<new>' has the id \d+ by the vocabulary, but 90 in",
        ),
    ],
)
def test_an_unreadable_model_is_a_named_error(tmp_path, content, values, message):
    with pytest.raises(LampError, match=message) as caught:
        load_tokenizer(make(tmp_path, content, **values))
    assert str(tmp_path) in str(caught.value)
