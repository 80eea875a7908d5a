"""Dense ranking against its definition, the embedded texts, and a cache that survives killed runs."""

import hashlib
import itertools
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.config import REFERENCE
from lamp_jax.data.files import Question
from lamp_jax.errors import LampError
from lamp_jax.retrieval import vectors
from lamp_jax.retrieval.dense import (
    EmbeddingCache,
    embed_all,
    rank_dense,
)
from lamp_jax.tasks.catalog import MissingMarker, find_task

TWEETS = find_task("LaMP-7")
SIZE = 4


def vector(text):
    """Small integers, so that products are exact and ties common."""
    octets = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:SIZE]
    return np.array([octet % 5 - 2 for octet in octets], np.float32)


class FakeEncoder:
    """Encoder in batches of three texts, the last texts first; records the texts of every call."""

    def __init__(self, vector=vector):
        self.vector, self.texts = vector, []

    def __call__(self, texts):
        self.texts += texts
        places = list(range(len(texts)))[::-1]
        for start in range(0, len(places), 3):
            part = places[start : start + 3]
            yield part, np.stack([self.vector(texts[place]) for place in part])


def tweet(key, query, documents):
    profile = tuple({"id": f"{key}{n}", "text": text, "date": 2000 + n} for n, text in enumerate(documents))
    return Question(key, TWEETS.input_for(query), profile)


texts = st.text("abc", max_size=2)
questions = st.lists(st.tuples(texts, st.lists(texts, max_size=8)), max_size=4).map(
    lambda drawn: [tweet(f"{n}-", *one) for n, one in enumerate(drawn)]
)


def brute_force(question, query):
    scores = [
        sum(float(a) * float(b) for a, b in zip(vector(item["text"]), vector(query), strict=True))
        for item in question.profile
    ]
    places = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    return [question.profile[place]["id"] for place in places], [scores[place] for place in places]


@given(questions)
def test_a_ranking_is_by_dot_product_then_by_position(questions):
    ranked = list(rank_dense(iter(questions), TWEETS, FakeEncoder()))
    assert [one.question_id for one in ranked] == [question.id for question in questions]
    for question, one in zip(questions, ranked, strict=True):
        item_ids, scores = brute_force(question, TWEETS.query(question.input))
        assert one.item_ids == item_ids
        assert one.scores.tolist() == scores


@given(questions)
def test_every_distinct_text_is_embedded_once(questions):
    encoder = FakeEncoder()
    list(rank_dense(questions, TWEETS, encoder))
    asked = {TWEETS.query(question.input) for question in questions}
    assert sorted(encoder.texts) == sorted(
        asked | {str(item["text"]) for question in questions for item in question.profile}
    )


@given(questions, st.booleans())
def test_rankings_are_the_same_with_few_vectors_in_memory(questions, apart):
    other = FakeEncoder(lambda text: vector(text[::-1] + "?")) if apart else None
    expected = list(rank_dense(questions, TWEETS, FakeEncoder(), embed_query=other))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "WINDOW", 3)
        patch.setattr(vectors, "_KEPT_WINDOWS", 1)
        encoder = FakeEncoder()
        found = list(rank_dense(questions, TWEETS, encoder, embed_query=other))
    assert len(set(encoder.texts)) == len(encoder.texts)
    for one, same in zip(found, expected, strict=True):
        assert (one.question_id, one.item_ids) == (same.question_id, same.item_ids)
        assert one.scores.tolist() == same.scores.tolist()


def test_vectors_used_again_far_later_come_from_the_file(monkeypatch):
    monkeypatch.setattr(vectors, "WINDOW", 2)
    monkeypatch.setattr(vectors, "_KEPT_WINDOWS", 1)
    loaded, load = [], vectors.DistinctVectors._load
    monkeypatch.setattr(
        vectors.DistinctVectors, "_load", lambda self, number: loaded.append(number) or load(self, number)
    )
    asked = [tweet(f"{n}-", "c", [f"{n}", f"{n}b"]) for n in (0, 1, 2, 3, 0)]
    ranked = list(rank_dense(asked, TWEETS, FakeEncoder()))
    assert set(loaded) >= {1, 2}  # of the first question's documents, for the last question
    assert [ranked[4].scores.tolist()] == [ranked[0].scores.tolist()]
    assert [ranked[4].item_ids, ranked[4].scores.tolist()] == list(brute_force(asked[4], "c"))


@pytest.mark.parametrize("size", [3, 64, 257])
def test_equal_documents_have_equal_scores_and_keep_their_order(size):
    def draw(text):
        return np.random.default_rng(list(text.encode())).standard_normal(size, np.float32)

    documents = [f"text {n % 7}" for n in range(50)]
    (one,) = rank_dense([tweet("q", "query", documents)], TWEETS, FakeEncoder(draw))
    own = dict(zip(one.item_ids, one.scores.tolist(), strict=True))
    for first, second in itertools.combinations(range(50), 2):
        if documents[first] == documents[second]:
            assert own[f"q{first}"] == own[f"q{second}"]
            assert one.item_ids.index(f"q{first}") < one.item_ids.index(f"q{second}")
    expected = [float(draw(text).astype(np.float64) @ draw("query")) for text in documents]
    assert [own[f"q{n}"] for n in range(50)] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_an_empty_profile_has_an_empty_ranking():
    empty, other = rank_dense([tweet("a", "x", []), tweet("b", "x", ["y"])], TWEETS, FakeEncoder())
    assert (empty.question_id, empty.item_ids, empty.scores.tolist()) == ("a", [], [])
    assert other.item_ids == ["b0"]
    assert [one.item_ids for one in rank_dense([tweet("a", "x", [])], TWEETS, FakeEncoder())] == [[]]


def test_no_questions_have_no_rankings():
    assert list(rank_dense([], TWEETS, FakeEncoder())) == []


def test_dates_are_part_of_documents_with_use_date():
    encoder = FakeEncoder()
    list(rank_dense([tweet("q", "x", ["a", "a"])], TWEETS, encoder, use_date=True))
    assert encoder.texts == ["x", "a date: 2000", "a date: 2001"]


def test_the_query_depends_on_the_compatibility():
    task = find_task("LaMP-1")
    asked = [Question("q", task.template.format(title="t", ref1='one "and" two', ref2="three"), ())]
    plain, public = FakeEncoder(), FakeEncoder()
    list(rank_dense(asked, task, plain))
    list(rank_dense(asked, task, public, compatibility=REFERENCE))
    assert plain.texts == [task.query(asked[0].input)]
    assert public.texts == [task.query(asked[0].input, reference=True)] != plain.texts


def test_errors_in_texts_are_reported_before_embedding():
    encoder, right = FakeEncoder(), tweet("a", "x", ["a"])
    wrong = Question("b", TWEETS.input_for("x"), ({"id": "b0", "title": "t"},))
    with pytest.raises(LampError, match="question 'b', profile item 'b0': no 'text'"):
        list(rank_dense([right, wrong], TWEETS, encoder))
    with pytest.raises(MissingMarker, match="question 'c'"):
        list(rank_dense([right, Question("c", "no such form", ())], TWEETS, encoder))
    assert encoder.texts == []


ENCODER = {"encoder": "abc", "max_length": 512}
FIRST, SECOND = [f"first {n}" for n in range(5)], [f"second {n}" for n in range(4)]


def check_cached(directory, texts, *, embedded=None):
    """Asserts that a reopened cache gives the texts' vectors, and that exactly `embedded`, if given, was computed."""
    encoder = FakeEncoder()
    found = embed_all(texts, EmbeddingCache(directory, ENCODER).wrap(encoder))
    np.testing.assert_array_equal(found, np.stack([vector(text) for text in texts]))
    if embedded is not None:
        assert sorted(encoder.texts) == sorted(embedded)


def test_a_second_run_embeds_nothing(tmp_path):
    check_cached(tmp_path / "new" / "cache", FIRST, embedded=FIRST)
    check_cached(tmp_path / "new" / "cache", FIRST, embedded=[])
    check_cached(tmp_path / "new" / "cache", FIRST[::-2], embedded=[])


def test_new_texts_are_added_to_the_cache(tmp_path):
    check_cached(tmp_path, FIRST[:2], embedded=FIRST[:2])
    check_cached(tmp_path, [SECOND[0], *FIRST, SECOND[1]], embedded=[*FIRST[2:], *SECOND[:2]])
    check_cached(tmp_path, FIRST + SECOND, embedded=SECOND[2:])


def test_cached_vectors_equal_the_encoders_to_the_last_bit(tmp_path):
    def draw(text):
        return np.random.default_rng(list(text.encode())).standard_normal(7, np.float32)

    def run():
        return embed_all(FIRST, EmbeddingCache(tmp_path, ENCODER).wrap(FakeEncoder(draw)))

    first = run()
    second = run()
    assert first.dtype == second.dtype == np.float32
    np.testing.assert_array_equal(first, second)


def test_one_cache_serves_several_runs(tmp_path):
    encoder = FakeEncoder()
    embed = EmbeddingCache(tmp_path, ENCODER).wrap(encoder)
    for texts in (FIRST, SECOND, FIRST + SECOND):
        np.testing.assert_array_equal(embed_all(texts, embed), np.stack([vector(text) for text in texts]))
    assert sorted(encoder.texts) == sorted(FIRST + SECOND)


def test_a_repeated_text_has_its_vector_at_each_place(tmp_path):
    twice = ["a", "b", "a", "c"]
    embed = EmbeddingCache(tmp_path, ENCODER).wrap(FakeEncoder())
    for texts in (twice, FIRST, twice + FIRST):
        np.testing.assert_array_equal(embed_all(texts, embed), np.stack([vector(text) for text in texts]))
    check_cached(tmp_path, twice + FIRST, embedded=[])


def test_lone_surrogates_are_texts_like_any_other(tmp_path):
    odd = ["\ud83d", "\ud83d\ude00", "?", ""]
    check_cached(tmp_path, odd, embedded=odd)
    check_cached(tmp_path, odd, embedded=[])


def test_rankings_do_not_depend_on_the_cache(tmp_path):
    asked = [tweet("q", "first 1", FIRST), tweet("r", "first 9", SECOND + FIRST[:2])]
    check_cached(tmp_path, FIRST[1:3], embedded=FIRST[1:3])
    cached = list(rank_dense(asked, TWEETS, EmbeddingCache(tmp_path, ENCODER).wrap(FakeEncoder())))
    for one, other in zip(cached, rank_dense(asked, TWEETS, FakeEncoder()), strict=True):
        assert one.item_ids == other.item_ids
        assert one.scores.tolist() == other.scores.tolist()


@pytest.mark.parametrize(
    ("encoder", "differing"),
    [
        ({"encoder": "abc", "max_length": 256}, "max_length differ"),
        ({"encoder": "xyz", "max_length": 256}, "encoder, max_length differ"),
        ({"encoder": "abc"}, "max_length differ"),
        ({**ENCODER, "dtype": "bfloat16"}, "dtype differ"),
    ],
)
def test_the_cache_of_another_encoder_is_an_error_that_names_the_difference(tmp_path, encoder, differing):
    check_cached(tmp_path, FIRST, embedded=FIRST)
    with pytest.raises(
        LampError, match=rf"another encoder's embeddings \({differing}.*cache\.json.*of its own"
    ) as error:
        EmbeddingCache(tmp_path, encoder)
    assert str(tmp_path) in str(error.value)
    check_cached(tmp_path, FIRST, embedded=[])


def test_a_directory_of_other_files_is_an_error(tmp_path):
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(LampError, match="has other files than embeddings; give an empty or a new directory"):
        EmbeddingCache(tmp_path, ENCODER)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_cache_of_a_run_killed_while_writing_is_continued(tmp_path):
    complete = tmp_path / "whole"
    check_cached(complete, FIRST + SECOND, embedded=FIRST + SECOND)
    content = (complete / "vectors").read_bytes()
    row = len(content) // len(FIRST + SECOND)
    order = sorted(FIRST + SECOND, key=lambda text: content.index(hashlib.sha256(text.encode()).digest()))
    for end in range(0, len(content) + 1, 5):
        (tmp_path / "cut").mkdir(exist_ok=True)
        shutil.copy(complete / "cache.json", tmp_path / "cut" / "cache.json")
        (tmp_path / "cut" / "vectors").write_bytes(content[:end])
        check_cached(tmp_path / "cut", FIRST + SECOND, embedded=order[end // row :])
        # Vectors appended after the remaining bytes are correct too.
        check_cached(tmp_path / "cut", FIRST + SECOND, embedded=[])


def test_a_truncated_temporary_description_is_ignored(tmp_path):
    (tmp_path / ".cache.json.77.unfinished").write_text('{"enc')
    check_cached(tmp_path, FIRST, embedded=FIRST)
