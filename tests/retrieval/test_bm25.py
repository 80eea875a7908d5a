"""BM25 against its textbook formula, rank_bm25 and bm25s; ties, shared profiles, processes, no start of jax."""

import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.config import REFERENCE
from lamp_jax.data.files import Question
from lamp_jax.errors import LampError
from lamp_jax.retrieval import bm25
from lamp_jax.retrieval.bm25 import SCORERS, best_first, lucene_scores, okapi_scores, rank_bm25
from lamp_jax.runs import workers
from lamp_jax.tasks.catalog import MissingMarker, find_task

TWEETS = find_task("LaMP-7")
TITLES = find_task("LaMP-1")

# Few words, so that most occur in more than half of the documents and have a negative idf; a no-break space and
# U+0085 separate words for str.split().
texts = st.lists(st.sampled_from(["a", "b", "b,", "B", "c", "d", "\u00a0", "\x85", "\n"]), max_size=12).map(" ".join)
profiles = st.lists(texts, min_size=1, max_size=8)


def brute_okapi(documents, query):
    """The definition, word by word and document by document."""
    split = [document.split() for document in documents]
    holders = Counter(word for words in split for word in set(words))
    idf = {word: math.log(len(split) - n + 0.5) - math.log(n + 0.5) for word, n in holders.items()}
    mean, average = sum(idf.values()) / len(idf), sum(map(len, split)) / len(split)
    idf = {word: value if value >= 0 else 0.25 * mean for word, value in idf.items()}
    norms = [1.5 * (0.25 + 0.75 * len(words) / average) for words in split]
    return [
        sum(idf.get(word, 0) * 2.5 * words.count(word) / (words.count(word) + norm) for word in query.split())
        for words, norm in zip(split, norms, strict=True)
    ]


def tweet(key, query, *documents):
    profile = tuple({"id": f"{key}{place}", "text": text} for place, text in enumerate(documents))
    return Question(key, TWEETS.input_for(query), profile)


def many_questions(count=60):
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(40)]
    draw = lambda size: " ".join(rng.choice(words, size))  # noqa: E731
    return [tweet(f"7{n}", draw(4), *[draw(rng.integers(1, 9)) for _ in range(n % 7)]) for n in range(count)]


@given(profiles.filter(lambda documents: any(map(str.split, documents))), texts)
def test_okapi_equals_its_definition(documents, query):
    np.testing.assert_allclose(okapi_scores(documents, [query])[0], brute_okapi(documents, query), atol=1e-12)


@pytest.mark.parity
@given(profiles.filter(lambda documents: any(map(str.split, documents))), texts)
def test_okapi_equals_rank_bm25_to_the_last_bit(documents, query):
    rank_bm25_library = pytest.importorskip("rank_bm25")
    index = rank_bm25_library.BM25Okapi([document.split() for document in documents])
    assert okapi_scores(documents, [query])[0].tolist() == index.get_scores(query.split()).tolist()


def test_a_negative_floor_ranks_matching_documents_last():
    documents = ["the the the", "the", ""]
    assert okapi_scores(documents, ["the"])[0] == pytest.approx(brute_okapi(documents, "the"))
    (ranked,) = rank_bm25([tweet("7", "the", *documents)], TWEETS)
    assert ranked.item_ids == ["72", "71", "70"]
    assert ranked.scores[0] == 0 > ranked.scores[1]


@given(profiles, texts)
def test_lucene_scores_are_never_negative_and_follow_the_definition(documents, query):
    split = [document.split() for document in documents]
    average = sum(map(len, split)) / len(split)
    expected = np.zeros(len(split))
    for word in query.split():
        n = sum(word in words for words in split)
        idf = math.log(1 + (len(split) - n + 0.5) / (n + 0.5))
        for place, words in enumerate(split):
            if word in words:
                count = words.count(word)
                expected[place] += idf * count / (count + 1.5 * (0.25 + 0.75 * len(words) / average))
    np.testing.assert_allclose(lucene_scores(documents, [query])[0], expected, atol=1e-12)


@pytest.mark.parametrize("variant", ["okapi", "lucene"])
@pytest.mark.parametrize("documents", [(), ("",), ("", " \n"), ("a b", "c")], ids=str)
@pytest.mark.parametrize("query", ["", "z", "  "])
def test_nothing_to_match_gives_zeros_in_the_original_order(variant, documents, query):
    (ranked,) = rank_bm25([tweet("7", query, *documents)], TWEETS, variant=variant)
    assert ranked.scores.dtype == np.float64
    assert ranked.scores.tolist() == [0.0] * len(documents)
    assert ranked.item_ids == [f"7{place}" for place in range(len(documents))]


def test_words_are_case_sensitive_and_include_punctuation():
    scores = okapi_scores(["Cat", "cat.", "cat", "dog", "dog", "dog"], ["cat"])[0]
    assert np.flatnonzero(scores).tolist() == [2]


def test_equal_scores_keep_the_profiles_order():
    scores = np.random.default_rng(0).integers(0, 3, 1000).astype(float)
    assert best_first(scores).tolist() == sorted(range(1000), key=lambda place: (-scores[place], place))
    (ranked,) = rank_bm25([tweet("7", "x", "a", "x b", "c", "x d", "e", "f")], TWEETS)
    assert ranked.item_ids == ["71", "73", "70", "72", "74", "75"]
    assert ranked.scores.tolist() == sorted(ranked.scores, reverse=True)


def test_every_distinct_profile_is_indexed_once_by_content(monkeypatch):
    indexed = []

    def counting(documents, queries):
        indexed.append(documents)
        return okapi_scores(documents, queries)

    monkeypatch.setitem(SCORERS, "okapi", counting)
    questions = [
        tweet("1", "a b", "a", "b", "c", "d"),
        tweet("2", "b", "other"),
        tweet("3", "b c", "a", "b", "c", "d"),  # the first's texts under other ids
        Question("4", TWEETS.input_for("other"), ({"id": "20", "text": "not the other"},)),  # the second's id
    ]
    ranked = list(rank_bm25(questions, TWEETS))
    assert indexed == [("a", "b", "c", "d"), ("other",), ("not the other",)]
    alone = [next(rank_bm25([question], TWEETS)) for question in questions]
    for one, other in zip(ranked, alone, strict=True):
        assert (one.question_id, one.item_ids) == (other.question_id, other.item_ids)
        assert one.scores.tolist() == other.scores.tolist()
    assert ranked[2].item_ids[:2] == ["31", "32"]


@pytest.mark.parametrize("variant", ["okapi", "lucene"])
def test_the_result_does_not_depend_on_the_number_of_workers(monkeypatch, variant):
    questions = many_questions() + many_questions(10)
    alone = list(rank_bm25(questions, TWEETS, variant=variant, workers=1))
    monkeypatch.setattr(bm25, "_WORK_WORTH_A_PROCESS", 1)
    monkeypatch.setattr(bm25, "_CHUNK_WORK", 3 * bm25._FIXED_WORK)
    together = list(rank_bm25(iter(questions), TWEETS, variant=variant, workers=2))
    assert [one.question_id for one in together] == [question.id for question in questions]
    for one, other in zip(alone, together, strict=True):
        assert one.item_ids == other.item_ids
        assert one.scores.tolist() == other.scores.tolist()


def test_a_small_input_starts_no_process(monkeypatch):
    monkeypatch.setattr(workers, "ProcessPoolExecutor", None)
    assert len(list(rank_bm25(many_questions(), TWEETS, workers=2))) == 60


def test_documents_include_their_date_only_with_use_date():
    items = tuple({"id": str(n), "text": "x", "date": 2000 + n} for n in range(4))
    question = Question("7", TWEETS.input_for("2002"), items)
    assert next(rank_bm25([question], TWEETS, use_date=True)).item_ids == ["2", "0", "1", "3"]
    assert next(rank_bm25([question], TWEETS)).item_ids == ["0", "1", "2", "3"]
    undated = Question("7", question.input, (*items, {"id": "4", "text": "x"}))
    with pytest.raises(LampError, match=r"question '7', profile item '4': no 'date'"):
        rank_bm25([undated], TWEETS, use_date=True)


def test_lamp1_queries_depend_on_the_compatibility():
    text = TITLES.template.format(title='A "b', ref1="one", ref2="two")
    items = tuple({"id": str(n), "title": t, "abstract": ""} for n, t in enumerate(["one", "which", "x", "y", "z"]))
    question = Question("0", text, items)
    assert next(rank_bm25([question], TITLES)).item_ids[0] == "0"
    assert next(rank_bm25([question], TITLES, compatibility=REFERENCE)).item_ids[0] == "1"


def test_a_bad_text_is_named_before_scoring(monkeypatch):
    monkeypatch.setitem(SCORERS, "okapi", None)
    with pytest.raises(MissingMarker, match=r"question '110'.*'description:'.*remove the question"):
        rank_bm25([Question("110", "A bare film.", ())], find_task("LaMP-2"))
    with pytest.raises(LampError, match=r"question '7', profile item '70': no 'text'.*LaMP-7"):
        rank_bm25([Question("7", TWEETS.input_for("x"), ({"id": "70"},))], TWEETS)


@pytest.mark.parametrize("first", ["pass", "import jax"], ids=["jax not imported", "jax imported"])
def test_lucene_starts_no_jax_backend(first):
    program = f"""
import sys
{first}
before = sys.modules.get("jax")
from lamp_jax.retrieval.bm25 import lucene_scores
assert lucene_scores(["a b", "c"], ["a"])[0].argmax() == 0
assert sys.modules.get("jax") is before and "bm25s" in sys.modules
if before:
    import jax.lax
    from jax._src import xla_bridge
    assert not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
