"""Rankings: equal to the public code's on every file under goldens/rank.

`rank_T_S_R.json` ranks `synth/LaMP_T/S_questions.json` by R; `date` in R means dates in the documents, and the
corresponding `scores_...` has the raw scores. Order is compared up to ties, which the public code breaks at random;
recency's ties are exact. `contriever` is dense ranking by the encoder `tiny/bert`.
"""

import functools
import json

import jax
import pytest

from lamp_jax.config import REFERENCE, Devices
from lamp_jax.data.files import read_questions
from lamp_jax.encoding import open_encoder
from lamp_jax.retrieval.bm25 import rank_bm25
from lamp_jax.retrieval.dense import rank_dense
from lamp_jax.retrieval.rankers import RANKERS, RankOptions
from lamp_jax.tasks.catalog import find_task
from tests.goldens.cases import CASES

pytestmark = pytest.mark.golden

FOLDER = CASES / "goldens" / "rank"
TIE = 1e-9
DENSE = {"rel": 1e-5, "abs": 0}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def parse(path):
    """Task, path of the questions, and the words of R."""
    _, task, *words = path.stem.split("_")
    for word in words:
        questions = CASES / "synth" / f"LaMP_{task}" / f"{word}_questions.json"
        if questions.exists():
            return find_task(f"LaMP-{task}"), questions, set(words) - {word}
    pytest.skip(f"{path.name}: its questions are not among the cases")


def files():
    return sorted(FOLDER.glob("rank_*.json"))


@pytest.mark.parametrize("path", files(), ids=lambda path: f"rank-{path.stem}")
def test_ranking_equals_the_public_codes(path):
    task, questions_path, words = parse(path)
    expected = read(path)
    questions = [one for one in read_questions(questions_path, task=task) if one.id in expected]
    assert len(questions) == len(expected)
    if "bm25" in words:
        ranked = rank_bm25(questions, task, use_date="date" in words, compatibility=REFERENCE)
        compare(ranked, expected, path, score={"abs": 1e-6, "rel": 0}, tie={"abs": TIE, "rel": 0})
    elif "contriever" in words:
        ranked = rank_dense(questions, task, embed, use_date="date" in words, compatibility=REFERENCE)
        compare(ranked, expected, path, score=DENSE, tie=DENSE)
    elif words & RANKERS.keys():
        (name,) = words & RANKERS.keys()
        ranked = RANKERS[name].rank(questions, task, RankOptions(compatibility=REFERENCE))
        assert {one.question_id: one.item_ids for one in ranked} == expected
    else:
        pytest.skip(f"{' '.join(sorted(words))}: no such ranker here")


@functools.cache
def open_tiny_bert():
    return open_encoder(str(CASES / "tiny" / "bert"), Devices(), max_length=512).documents


def embed(texts):
    with jax.default_matmul_precision("highest"):
        yield from open_tiny_bert()(texts)


def compare(ranked, expected, path, *, score, tie):
    """`score` and `tie` are the tolerances of equal scores: to the golden's, and among our own."""
    scores_path = path.with_name(path.name.replace("rank_", "scores_", 1))
    expected_scores = read(scores_path) if scores_path.exists() else {}
    found = list(ranked)
    assert sorted(one.question_id for one in found) == sorted(expected)
    for key, item_ids, scores in found:
        own = dict(zip(item_ids, scores.tolist(), strict=True))
        assert len(own) == len(item_ids), "items of one id: compare by place instead"
        if key in expected_scores:
            assert own == pytest.approx(expected_scores[key], **score)
        # The expected order equals ours up to ties: both orders have the same sequence of our scores.
        assert sorted(expected[key]) == sorted(item_ids)
        theirs = [own[item_id] for item_id in expected[key]]
        assert theirs == pytest.approx(scores.tolist(), **tie), f"question {key}"
