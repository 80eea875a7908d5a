"""Trained tokenizers: T5's format, and a round trip through a directory."""

import pytest

from lamp_jax.errors import LampError
from lamp_jax.inputs.tokenizer import EXTRA_IDS, load_tokenizer, tokenize, train_text_tokenizer, train_tokenizer

TEXTS = [f"the {word} film was {other} and  long" for word in ("good", "bad", "old") for other in ("dull", "bright")]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 10, vocab_size=120)


def test_special_tokens_have_the_ids_of_t5(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["<pad>", "</s>", "<unk>"]) == [0, 1, 2]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    sentinels = tokenizer.convert_tokens_to_ids([f"<extra_id_{n}>" for n in range(EXTRA_IDS)])
    assert sorted(sentinels) == list(range(len(tokenizer) - EXTRA_IDS, len(tokenizer)))


def test_texts_end_with_eos_and_round_trip(tokenizer):
    ids = tokenizer("the good film").input_ids
    assert ids[-1] == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the good film"


@pytest.mark.parametrize("cased", [True, False])
def test_a_word_has_the_same_tokens_next_to_punctuation(cased):
    tokenizer = train_text_tokenizer(TEXTS * 10, vocab_size=120, cased=cased)
    bare, *quoted = (
        tokenizer(text, add_special_tokens=False).input_ids for text in ("good film", '"good film"', "(good, film)!")
    )
    assert tokenizer.unk_token_id not in bare
    for ids in quoted:
        assert [token for token in ids if token in bare] == bare


def test_a_saved_tokenizer_gives_the_same_ids(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    for again in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(str(tmp_path))):
        for text in (*TEXTS, "unseen wörds 日本", "", "<extra_id_3> x"):
            assert again(text).input_ids == tokenizer(text).input_ids


def test_a_directory_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(LampError, match="has no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(LampError, match="no such directory"):
        load_tokenizer(tmp_path / "absent")


@pytest.mark.parametrize("count", [0, 1, 5, 9])
def test_texts_are_tokenized_a_few_at_a_time_with_the_same_result(count, monkeypatch):
    tokenizer = train_text_tokenizer(["some words of several texts"], vocab_size=60)
    texts = [f"text {number} has several words of {'some ' * number}" for number in range(count)]
    complete = tokenize(texts, tokenizer, max_length=12)
    assert complete == [tokenizer(text, truncation=True, max_length=12).input_ids for text in texts]
    monkeypatch.setattr("lamp_jax.inputs.tokenizer._TEXTS_AT_ONCE", 4)
    assert tokenize(texts, tokenizer, max_length=12) == complete
