"""Inputs of a selector: prompts, with as much of the answer as fits; round trip of its settings."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.artifacts.selector import Candidate, CandidateSet, QuestionCandidates
from lamp_jax.errors import LampError
from lamp_jax.inputs.selector import (
    SETTINGS,
    CandidateReader,
    SelectorSettings,
    candidate_examples,
    read_settings,
    write_settings,
)
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.tasks.catalog import find_task

LONGFORMER = Path(__file__).parents[1] / "cases" / "tiny" / "longformer_w512"
POST = SelectorSettings("LaMP-2", "accuracy", ("none", "bm25"), "post", 64, "cased", "prompt", "global")
PRE = replace(POST, mode="pre")

TEXTS = st.text(st.sampled_from("aB é\n日.'") | st.characters(exclude_categories=["Cs"]), max_size=24)


@cache
def tokenizer():
    return load_tokenizer(LONGFORMER)


def reader(settings):
    return CandidateReader(tokenizer(), settings)


def test_a_generators_tokenizer_is_a_named_error():
    with pytest.raises(LampError, match="t5_ft: its tokenizer lacks a token for the begin, the end or the separator"):
        CandidateReader(load_tokenizer(LONGFORMER.parent / "t5_ft"), POST)


def read(prompt, output="", settings=POST, **changes):
    (ids,) = reader(replace(settings, **changes))([Candidate(prompt, output)])
    return ids


def ids_of(text, **options):
    return tokenizer()(text, **options).input_ids


def join_texts(prompt, output):
    return f"{prompt} {tokenizer().sep_token} {output}"


# --- before generation


@given(TEXTS, TEXTS, st.integers(3, 40))
def test_before_generation_only_prompts_are_read_and_truncated_like_by_the_tokenizer(prompt, output, length):
    assert read(prompt, output, PRE, max_length=length) == ids_of(prompt, truncation=True, max_length=length)


def test_before_generation_no_answer_is_too_long():
    assert read("a film", "word " * 99, PRE, max_length=4) == ids_of("a film", truncation=True, max_length=4)


# --- after generation


@given(TEXTS, TEXTS, st.sampled_from(["prompt", "end"]))
def test_an_input_that_fits_is_prompt_separator_answer(prompt, output, cut):
    assert read(prompt, output, cut=cut, max_length=512) == ids_of(join_texts(prompt, output))


@given(TEXTS, TEXTS, st.integers(1, 30))
def test_an_input_that_is_too_long_loses_the_end_of_the_prompt(prompt, output, cut):
    complete = ids_of(join_texts(prompt, output))
    answer = ids_of(f"{tokenizer().sep_token} {output}")[1:]
    kept = len(complete) - len(answer) - cut
    if kept > 1:
        found = read(prompt, output, max_length=len(complete) - cut)
        assert found == complete[:kept] + answer
        assert len(found) == len(complete) - cut


def test_an_input_of_exactly_the_maximum_length_is_not_cut():
    complete = ids_of(join_texts("what is the genre", "comedy"))
    assert read("what is the genre", "comedy", max_length=len(complete)) == complete
    shorter = read("what is the genre", "comedy", max_length=len(complete) - 1)
    assert len(shorter) == len(complete) - 1
    assert shorter[0] == tokenizer().cls_token_id
    assert shorter[-1] == tokenizer().sep_token_id
    assert shorter.count(tokenizer().sep_token_id) == 2
    assert tokenizer().decode(shorter, skip_special_tokens=True).endswith(" comedy")


@given(TEXTS, TEXTS, st.integers(3, 60))
def test_cut_at_the_end_equals_the_truncation_of_the_tokenizer(prompt, output, length):
    expected = ids_of(join_texts(prompt, output), truncation=True, max_length=length)
    assert read(prompt, output, cut="end", max_length=length) == expected


def test_cut_at_the_end_no_answer_is_too_long():
    assert len(read("a film", "word " * 99, cut="end", max_length=8)) == 8


def test_a_prompt_that_holds_a_separator_keeps_it():
    prompt = "a </s> b"
    assert read(prompt, "c") == ids_of(join_texts(prompt, "c"))


@given(TEXTS, TEXTS, st.sampled_from(["prompt", "end"]))
def test_only_prompts_are_lower_case(prompt, output, cut):
    expected = ids_of(join_texts(prompt.lower(), output))
    assert read(prompt, output, cut=cut, case="lower", max_length=512) == expected
    assert read(prompt, output, PRE, case="lower", max_length=512) == ids_of(prompt.lower())


def test_case_is_kept_by_default():
    assert read("What", "NO") == ids_of(join_texts("What", "NO")) != ids_of(join_texts("what", "NO"))
    assert read("What", "NO", case="lower") == ids_of(join_texts("what", "NO")) != ids_of(join_texts("what", "no"))
    assert read("What", settings=PRE) == ids_of("What") != ids_of("what")


@given(TEXTS.filter(str.strip), TEXTS)
def test_an_answer_that_is_too_long_is_an_error_with_the_length_that_it_needs(prompt, output):
    answer = ids_of(f"{tokenizer().sep_token} {output}")
    # One token of the prompt must stay.
    needed = len(answer) + 1
    for length in (1, needed - 1):
        with pytest.raises(LampError, match=f"--max-length than {needed - 1}$"):
            read(prompt, output, max_length=length)
    found = read(prompt, output, max_length=needed)
    assert len(found) == needed
    assert found == answer[:1] + ids_of(f"{prompt} ")[1:2] + answer[1:]


def test_the_error_shows_how_the_answer_begins():
    with pytest.raises(LampError, match="a comedy of errors") as caught:
        read("a film", "a comedy of errors " * 50, max_length=16)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("settings", [PRE, POST, replace(POST, cut="end")])
def test_candidates_are_tokenized_in_order_and_separately(settings):
    candidates = [Candidate("a longer prompt than the others", "yes"), Candidate("b", "no"), Candidate("", "")]
    assert reader(settings)(candidates) == [row for one in candidates for row in reader(settings)([one])]


@pytest.mark.parametrize("settings", [PRE, POST, replace(POST, cut="end")])
def test_lone_surrogates_are_tokenized(settings):
    assert read("a \ud83d b", "c \udc00", settings)[0] == tokenizer().cls_token_id


# --- settings


@given(
    st.builds(
        SelectorSettings,
        st.sampled_from(["LaMP-1", "LaMP-7"]),
        st.sampled_from(["accuracy", "rouge-1"]),
        st.lists(TEXTS, min_size=1, max_size=4).map(tuple),
        st.sampled_from(["pre", "post"]),
        st.integers(1, 4096),
        st.sampled_from(["cased", "lower"]),
        st.sampled_from(["prompt", "end"]),
        st.sampled_from(["global", "local"]),
    )
)
def test_written_settings_are_read_unchanged(tmp_path_factory, settings):
    directory = tmp_path_factory.mktemp("selector")
    write_settings(directory, settings)
    assert read_settings(directory) == settings
    assert (directory / SETTINGS).is_file()


def test_a_directory_without_settings_names_the_remedy(tmp_path):
    with pytest.raises(LampError, match=r"selector\.json is missing.*`lamp train-selector`") as caught:
        read_settings(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(LampError, match="absent: no selector"):
        read_settings(tmp_path / "absent")


def test_settings_of_another_form_are_an_error_with_the_file(tmp_path):
    write_settings(tmp_path, POST)
    written = json.loads((tmp_path / SETTINGS).read_text())
    lacking = {name: value for name, value in written.items() if name != "cut"}
    for content in (lacking, {**written, "colour": "red"}, [], "text", None):
        (tmp_path / SETTINGS).write_text(json.dumps(content))
        with pytest.raises(LampError, match=r"selector\.json: does not describe a selector"):
            read_settings(tmp_path)
    (tmp_path / SETTINGS).write_text("{")
    with pytest.raises(LampError, match=r"selector\.json: invalid JSON"):
        read_settings(tmp_path)


# --- examples


def make_candidate_set(**rewards):
    """Candidate set from each question's rewards by retriever."""
    questions = [
        QuestionCandidates(
            key, "input", "gold", {name: Candidate(f"{name} {key}", "out", worth) for name, worth in one.items()}
        )
        for key, one in rewards.items()
    ]
    return CandidateSet(find_task("LaMP-2"), "accuracy", ("none", "bm25"), questions)


def test_examples_are_the_questions_candidates_and_their_rewards_in_order():
    examples = candidate_examples(make_candidate_set(q={"none": 0.25, "bm25": 1.0}, p={"bm25": 0.5}), reader(POST))
    assert [one.id for one in examples] == ["q", "p"]
    assert [[row.tolist() for row in one.documents] for one in examples] == [
        [ids_of(join_texts("none q", "out")), ids_of(join_texts("bm25 q", "out"))],
        [ids_of(join_texts("bm25 p", "out"))],
    ]
    assert [one.rewards.tolist() for one in examples] == [[0.25, 1.0], [0.5]]


def test_an_example_has_no_query_and_integer_rows():
    (one,) = candidate_examples(make_candidate_set(q={"none": 0.0, "bm25": 1.0}), reader(PRE))
    assert one.query is None
    assert len(one.texts) == 2
    assert all(row.dtype == np.int32 for row in one.texts)
    assert one.rewards.dtype == np.float32


def test_examples_need_rewards():
    with pytest.raises(LampError, match="without rewards; make them again with `lamp selector-data --golds`"):
        candidate_examples(make_candidate_set(q={"none": 0.0, "bm25": None}), reader(POST))
