"""Rankings: round trip through files, re-ordering of complete profiles only, and the contract of all rankers."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.data.files import Question
from lamp_jax.errors import LampError
from lamp_jax.retrieval.rankers import RANKERS, RETRIEVERS, RankOptions, find_ranker, find_retriever
from lamp_jax.retrieval.ranking import (
    RankingFile,
    apply_ranking,
    apply_rankings,
    encode_ranking,
    read_scores,
    write_rankings,
)
from lamp_jax.retrieval.scored import Ranked
from lamp_jax.tasks.catalog import find_task

TASK = find_task("LaMP-7")


def question(key, *item_ids):
    items = tuple({"id": i, "text": f"text {n}", "date": 2000 + n} for n, i in enumerate(item_ids))
    return Question(key, TASK.input_for("text 1"), items)


def embed_lengths(texts):
    """Texts as vectors of one number."""
    yield range(len(texts)), np.array([[len(text)] for text in texts], np.float32)


@pytest.mark.parametrize("name", RANKERS)
def test_every_ranker_ranks_all_items_of_each_profile_in_the_order_of_the_questions(name):
    questions = [question("b", "1", "2", "3"), question("a"), question("c", "1", "1", "2")]
    order = {one.id: [item["id"] for item in one.profile] for one in questions}
    options = RankOptions(workers=1, embed=embed_lengths, rankings={"one": order, "other": order})
    ranked = list(RANKERS[name].rank(iter(questions), TASK, options))
    assert [one.question_id for one in ranked] == ["b", "a", "c"]
    assert [sorted(one.item_ids) for one in ranked] == [["1", "2", "3"], [], ["1", "1", "2"]]
    assert [len(one.scores) for one in ranked] == [3, 0, 3]
    assert all(one.scores.tolist() == sorted(one.scores, reverse=True) for one in ranked)
    assert len(apply_rankings(questions, {one.question_id: one.item_ids for one in ranked})) == 3


# BM25 finds "2003" only in dates. "text" is in every document: Okapi's floor is negative then, Lucene's idf is not.
@pytest.mark.parametrize(
    ("name", "query", "left", "right"),
    [
        ("random", "", RankOptions(seed=1), RankOptions(seed=2)),
        ("bm25", "2003", RankOptions(use_date=False, workers=1), RankOptions(use_date=True, workers=1)),
        ("bm25", "text", RankOptions(variant="okapi", workers=1), RankOptions(variant="lucene", workers=1)),
    ],
)
def test_options_are_passed_to_the_rankers(name, query, left, right):
    items = tuple({"id": str(n), "text": "text " * n, "date": 2000 + n} for n in range(1, 6))
    asked = [Question("q", TASK.input_for(query), items)]
    (one,), (other,) = (RANKERS[name].rank(asked, TASK, options) for options in (left, right))
    assert one.item_ids != other.item_ids


@pytest.mark.parametrize("name", RETRIEVERS)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_retriever_returns_items_of_the_profile_for_every_question(name, count):
    questions = [question("b", "1", "2", "3"), question("a"), question("c", "1", "1", "2")]
    found = list(RETRIEVERS[name].retrieve(questions, TASK, RankOptions(workers=1), count))
    wanted = [0 if name == "none" else min(count, len(one.profile)) for one in questions]
    assert [len(items) for items in found] == wanted
    assert all(item in one.profile for one, items in zip(questions, found, strict=True) for item in items)


def test_a_ranker_without_its_inputs_is_an_error():
    with pytest.raises(LampError, match=r"dense: ranks by an encoder's vectors"):
        RANKERS["dense"].rank([question("a")], TASK, RankOptions())
    with pytest.raises(LampError, match=r"rrf: 0 rankings; give two or more"):
        RANKERS["rrf"].rank([question("a")], TASK, RankOptions())


def test_the_error_about_an_unknown_name_lists_all_names():
    with pytest.raises(LampError, match=r"unknown ranker 'bm52': choose one of bm25, recency, random, dense, rrf"):
        find_ranker("bm52")
    with pytest.raises(LampError, match=r"'dense': choose one of file, none, bm25, recency, random, recency\+dense"):
        find_retriever("dense")


def test_a_profile_is_reordered():
    ordered = apply_ranking(question("q", "a", "b", "c"), ["c", "a", "b"])
    assert [item["text"] for item in ordered.profile] == ["text 2", "text 0", "text 1"]
    assert (ordered.id, ordered.input) == ("q", TASK.input_for("text 1"))


@given(st.lists(st.sampled_from("ab"), max_size=6).flatmap(lambda ids: st.tuples(st.just(ids), st.permutations(ids))))
def test_items_with_equal_ids_are_all_kept_in_their_order(ids_and_ranking):
    ids, ranking = ids_and_ranking
    ordered = apply_ranking(question("q", *ids), ranking).profile
    assert [item["id"] for item in ordered] == ranking
    for item_id in "ab":
        dates = [item["date"] for item in ordered if item["id"] == item_id]
        assert dates == sorted(dates)
    assert len(ordered) == len(ids)


@pytest.mark.parametrize(
    ("ranking", "counts"),
    [
        (["a"], r"lacks 1 of 2 profile items \['b'\] and names 0"),
        (["a", "b", "c", "d"], r"lacks 0 of 2 profile items \[\] and names 2 .*\['c', 'd'\]"),
        (["a", "a"], r"lacks 1 of 2 profile items \['b'\] and names 1 .*\['a'\]"),
    ],
)
def test_a_ranking_of_other_items_is_an_error_with_counts(ranking, counts):
    with pytest.raises(LampError, match=rf"question 'q': the ranking {counts}"):
        apply_ranking(question("q", "a", "b"), ranking)


def test_a_ranking_of_other_questions_is_an_error():
    with pytest.raises(LampError, match="1 ids of the questions are not in the ranking"):
        apply_rankings([question("q", "a")], {})
    with pytest.raises(LampError, match="1 ids of the ranking are not in the questions"):
        apply_rankings([], {"q": ["a"]})


def by_rank(rankings):
    return [Ranked(key, list(ids), 1.0 / np.arange(1, len(ids) + 1)) for key, ids in rankings]


@given(rankings=st.dictionaries(st.text(), st.lists(st.text(), max_size=4), max_size=4))
def test_a_ranking_file_round_trips(tmp_path_factory, rankings):
    path = tmp_path_factory.getbasetemp() / "ranking.json"
    assert write_rankings(path, map(encode_ranking, by_rank(rankings.items()))) == len(rankings)
    assert dict(RankingFile(path)) == rankings
    assert json.loads(path.read_text(encoding="utf-8")) == rankings


def test_a_failed_ranking_leaves_the_old_file(tmp_path):
    path = tmp_path / "R.json"
    write_rankings(path, map(encode_ranking, by_rank([("q", ["a"])])), scores=tmp_path / "S.json")
    with pytest.raises(LampError, match="'q' was ranked twice"):
        write_rankings(
            path, map(encode_ranking, by_rank([("q", ["b", "c"]), ("q", ["c"])])), scores=tmp_path / "S.json"
        )
    assert dict(RankingFile(path)) == {"q": ["a"]}
    assert read_scores(tmp_path / "S.json") == {"q": [1.0]}
    assert sorted(one.name for one in tmp_path.iterdir()) == ["R.json", "S.json"]


@given(st.dictionaries(st.text(), st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4), max_size=4))
def test_a_file_of_scores_round_trips(tmp_path_factory, scores):
    folder = tmp_path_factory.getbasetemp()
    scores = {key: sorted(values, reverse=True) for key, values in scores.items()}
    ranked = [Ranked(key, [str(n) for n in range(len(values))], np.array(values)) for key, values in scores.items()]
    write_rankings(folder / "ranking.json", map(encode_ranking, ranked), scores=folder / "scores.json")
    assert read_scores(folder / "scores.json") == scores


@pytest.mark.parametrize("content", ['{"q": [1, 2]}', '{"q": ["1"]}', '{"q": [true]}', '{"q": 1}', "[]"])
def test_a_file_without_scores_is_named(tmp_path, content):
    path = tmp_path / "S.json"
    path.write_text(content)
    with pytest.raises(LampError, match=r"S\.json.*lamp rank --scores"):
        read_scores(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[]", "expected an object of question ids"),
        ('{"q": "ab"}', "question 'q': expected a list of item ids"),
        ('{"q": [["a", 0.5]]}', "question 'q': expected a list of item ids"),
        ('{"q": ["a"', "invalid JSON"),
        ('{"q": ["\\x"]}', "invalid JSON"),
        ('{"q": %s}' % ("[" * 100_000 + "]" * 100_000), "invalid JSON"),
        ('{"q": [%s]}' % ("9" * 5000), "question 'q': invalid JSON .*5000 digits"),
    ],
)
def test_a_file_that_is_not_a_ranking_is_named(tmp_path, content, problem):
    path = tmp_path / "R.json"
    path.write_text(content)
    with pytest.raises(LampError, match=rf"R\.json.*{problem}"):
        dict(RankingFile(path))


def test_numeric_item_ids_are_read_as_texts(tmp_path):
    path = tmp_path / "R.json"
    path.write_text('{"1": [12, "13"]}')
    assert dict(RankingFile(path)) == {"1": ["12", "13"]}
