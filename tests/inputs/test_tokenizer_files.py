"""Tokenizers from files other than tokenizer.json: transformers' ids, and errors that name damaged files."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_jax.errors import LampError
from lamp_jax.inputs.tokenizer import load_tokenizer, tokenize
from lamp_jax.tasks.catalog import find_task
from lamp_jax.tasks.prompts import PromptTokenizer, build_prompt
from tests.examples import examples
from tests.inputs.spiece import PIECES, T5, model

TINY = Path(__file__).parents[1] / "cases" / "tiny"
BYT5 = {"extra_ids": 125, "tokenizer_class": "ByT5Tokenizer"}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abab\nsize 2424064\n"
TEXTS = ("the good film", "Hello, wörld!", "日本語 😀👩‍👩‍👧 e\u0301", "", " a  b\n", "x </s> y", "12" * 40)


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")


@pytest.fixture(scope="module")
def byt5_pair(tmp_path_factory):
    """Our tokenizer and that of transformers."""
    from transformers import ByT5Tokenizer

    directory = tmp_path_factory.mktemp("byt5")
    write(directory / "config.json", {"model_type": "t5", "vocab_size": 384})
    write(directory / "tokenizer_config.json", BYT5)
    return load_tokenizer(directory), ByT5Tokenizer.from_pretrained(str(directory))


SPECIAL = ("</s>", " <pad>", "<unk> ", "<extra_id_0>", "<extra_id_124> ", "  ", "\t\n", "日本", "😀", "'s", "a" * 200)


# Python counts \x1c to \x1f as white space, Unicode does not; white space next to a special token of ByT5 is removed.
CHARACTERS = st.characters(exclude_characters="\x1c\x1d\x1e\x1f", exclude_categories=["Cs"])


@given(text=st.lists(st.sampled_from(SPECIAL) | st.text(CHARACTERS, max_size=9), max_size=9).map("".join))
@settings(max_examples=examples(400))
def test_ids_of_byt5_equal_transformers(byt5_pair, text):
    ours, theirs = byt5_pair
    ids = theirs(text, add_special_tokens=False).input_ids
    assert ours(text, add_special_tokens=False).input_ids == ids
    assert ours(text).input_ids == [*ids, 1]  # theirs reads </s> at the end of a text as the text's end
    assert PromptTokenizer(ours).ids(text) == [*ids, 1]
    if "\ufffd" not in text:
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)


def test_byt5_has_384_tokens_with_bytes_after_the_special_tokens(byt5_pair):
    ours, theirs = byt5_pair
    assert len(ours) == len(theirs) == 384
    assert ours("é").input_ids == [0xC3 + 3, 0xA9 + 3, 1]
    assert (ours.pad_token_id, ours.eos_token_id, ours.unk_token_id) == (0, 1, 2)
    assert ours.decode([0xC3 + 3, 0xA9 + 3, 0xF0 + 3, 0x9F + 3]) == "é"  # incomplete characters are decoded to no text


def test_a_saved_byt5_gives_the_same_ids(byt5_pair, tmp_path):
    from transformers import AutoTokenizer

    byt5_pair[0].save_pretrained(tmp_path)
    for again in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(str(tmp_path))):
        for text in TEXTS:
            assert again(text).input_ids == byt5_pair[0](text).input_ids


@pytest.mark.parametrize("length", range(24, 120, 7))
def test_prompts_of_bytes_are_cut_between_characters(byt5_pair, length):
    task, tokenizer = find_task("LaMP-4"), PromptTokenizer(byt5_pair[0])
    items = [{"id": "1", "title": "日本語の見出し", "text": "😀😀😀 naïve café " * 3}]
    question = "Generate a headline for the following article: 東京 — " + "é😀" * 20
    prompt = build_prompt(task, question, items, tokenizer, max_length=length)
    assert len(prompt.tokens) <= length
    assert "\ufffd" not in prompt.text
    assert byt5_pair[0].decode(prompt.tokens, skip_special_tokens=True) == prompt.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"extra_ids": None}, "extra_ids None"),
        ({"extra_ids": -3}, "extra_ids -3"),
        ({"eos_token": "<end>"}, "eos_token is '<end>'"),
    ],
)
def test_unsupported_settings_of_a_byt5_are_named_errors(tmp_path, values, message):
    write(tmp_path / "tokenizer_config.json", BYT5 | values)
    with pytest.raises(LampError, match=rf"tokenizer_config\.json: {message}"):
        load_tokenizer(tmp_path)


def bpe_files(directory, source):
    """vocab.json and merges.txt of a tokenizer.json."""
    saved = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    write(directory / "vocab.json", saved["vocab"])
    merges = [one if isinstance(one, str) else " ".join(one) for one in saved["merges"]]
    write(directory / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")


def make_codet5(directory):
    bpe_files(directory, TINY / "longformer_w512")
    write(directory / "config.json", {"model_type": "t5", "vocab_size": 3064})
    names = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
    values = {f"{name}_token": token for name, token in names.items()} | {"tokenizer_class": "RobertaTokenizer"}
    write(directory / "tokenizer_config.json", values)


def make_longformer(directory):
    bpe_files(directory, TINY / "longformer_w512")
    shutil.copy(TINY / "longformer_w512" / "config.json", directory)


def make_bert(directory):
    saved = json.loads((TINY / "bert" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    write(directory / "vocab.txt", "\n".join(sorted(saved, key=saved.get)) + "\n")
    shutil.copy(TINY / "bert" / "config.json", directory)


def make_t5(directory):
    write(directory / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "extra_ids": 5})
    write(directory / "config.json", {"model_type": "t5", "vocab_size": 64})
    (directory / "spiece.model").write_bytes(model(T5 + PIECES))


def make_tiny(directory):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"):
        if (TINY / "t5_ft" / name).exists():
            shutil.copy(TINY / "t5_ft" / name, directory)


MAKERS = {"codet5": make_codet5, "longformer": make_longformer, "bert": make_bert, "t5": make_t5, "json": make_tiny}


@pytest.mark.parametrize(
    ("make", "source"), [(make_codet5, "longformer_w512"), (make_longformer, "longformer_w512"), (make_bert, "bert")]
)
def test_vocabularies_without_a_tokenizer_json_give_the_same_ids(tmp_path, make, source):
    make(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), load_tokenizer(TINY / source)
    for text in TEXTS:
        assert ours(text).input_ids == theirs(text).input_ids
        assert PromptTokenizer(ours).ids(text) == theirs(text).input_ids


DAMAGES = {
    "pointer": lambda content: POINTER,
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "null": lambda content: b"null",
    "list": lambda content: b"[]",
    "object": lambda content: b"{}",
    "binary": lambda content: bytes(range(256)) * 8,
}


def ids_or_error(directory):
    try:
        return load_tokenizer(directory)("the film").input_ids
    except LampError as error:
        return str(error)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("json", "tokenizer.json"),
        *[("json", name) for name in ("tokenizer_config.json", "special_tokens_map.json", "config.json")],
        *[("codet5", name) for name in ("vocab.json", "merges.txt", "tokenizer_config.json")],
        *[("longformer", name) for name in ("vocab.json", "merges.txt", "config.json")],
        *[("bert", name) for name in ("vocab.txt", "config.json")],
        *[("t5", name) for name in ("spiece.model", "tokenizer_config.json", "config.json")],
    ],
)
def test_a_damaged_file_is_named(tmp_path, kind, name, damage):
    MAKERS[kind](tmp_path)
    complete = load_tokenizer(tmp_path)
    path = tmp_path / name
    before = path.read_bytes() if path.exists() else b"{}"
    path.write_bytes(DAMAGES[damage](before))
    settings_file = name in ("tokenizer_config.json", "special_tokens_map.json", "config.json")
    if damage == "object" and settings_file:  # an empty object is no damage if a tokenizer can be made
        found = ids_or_error(tmp_path)
        assert found == complete("the film").input_ids or str(tmp_path) in str(found)
        return
    with pytest.raises(LampError) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert name in str(caught.value)
    assert ("git lfs pull" in str(caught.value)) == (damage == "pointer")


@pytest.mark.parametrize("values", [5, "text", [], {"a": 1}, True])
@pytest.mark.parametrize("field", ["model", "normalizer", "pre_tokenizer", "post_processor", "added_tokens", "decoder"])
def test_a_tokenizer_json_with_something_else_in_a_field_is_named(tmp_path, field, values):
    make_tiny(tmp_path)
    path = tmp_path / "tokenizer.json"
    complete = load_tokenizer(tmp_path)
    write(path, json.loads(path.read_text(encoding="utf-8")) | {field: values})
    found = ids_or_error(tmp_path)
    same = field == "added_tokens" and found == complete("the film").input_ids
    assert same or "tokenizer.json" in str(found)


@pytest.mark.parametrize("added", [5, [], {"x": {"content": "a"}}, {"3": "a"}, {"3": {}}, {"3": {"content": 3}}])
def test_invalid_added_tokens_are_named(tmp_path, added):
    make_tiny(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    write(path, json.loads(path.read_text(encoding="utf-8")) | {"added_tokens_decoder": added})
    with pytest.raises(LampError, match=r"tokenizer_config\.json: added_tokens_decoder"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_without_its_merges_is_named(tmp_path):
    make_codet5(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(LampError, match=r"has vocab\.json but no merges\.txt"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_of_another_model_is_named(tmp_path):
    make_bert(tmp_path)
    write(tmp_path / "config.json", {"model_type": "bert", "vocab_size": 30522})
    with pytest.raises(LampError, match=r"vocab\.txt: has \d+ pieces, but config\.json says vocab_size 30522"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_without_a_special_token_is_named(tmp_path):
    make_bert(tmp_path)
    path = tmp_path / "vocab.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("[SEP]", "zzsepzz"), encoding="utf-8")
    with pytest.raises(LampError, match=r"its vocabulary lacks '\[SEP\]', the sep_token"):
        load_tokenizer(tmp_path)


def test_files_of_a_hub_name_are_read_like_those_of_a_directory(tmp_path, monkeypatch):
    import huggingface_hub

    make_t5(tmp_path)
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, "spiece.model" in allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = load_tokenizer("google/t5-v1_1-base")
    assert asked == [("google/t5-v1_1-base", True)]
    assert tokenize(TEXTS, found, max_length=9) == tokenize(TEXTS, load_tokenizer(tmp_path), max_length=9)
