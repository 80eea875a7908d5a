"""Rankings equal the public code's on every file under goldens/rank.

`rank_T_S_R.json` ranks `synth/LaMP_T/S_questions.json` by R; `date` among the parts of R means dates in the documents,
and `scores_...` beside it holds the raw scores. Order is compared up to ties, which the public code breaks at random;
recency's ties are exact.
"""

import json

import pytest

from lamp_jax.config import REFERENCE
from lamp_jax.data.files import read_questions
from lamp_jax.retrieval.bm25 import rank_bm25
from lamp_jax.retrieval.ranking import RANKERS, RankOptions
from lamp_jax.tasks.catalog import find_task
from tests.goldens.cases import CASES

pytestmark = pytest.mark.golden

FOLDER = CASES / "goldens" / "rank"
TIE = 1e-9


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
        compare_bm25(questions, task, expected, path, use_date="date" in words)
    elif words & RANKERS.keys():
        (name,) = words & RANKERS.keys()
        assert dict(RANKERS[name](questions, task, RankOptions(compatibility=REFERENCE))) == expected
    else:
        pytest.skip(f"{' '.join(sorted(words))}: dense ranking not built yet")


def compare_bm25(questions, task, expected, path, *, use_date):
    scores_path = path.with_name(path.name.replace("rank_", "scores_", 1))
    expected_scores = read(scores_path) if scores_path.exists() else {}
    ranked = rank_bm25(questions, task, use_date=use_date, compatibility=REFERENCE)
    for key, item_ids, scores in ranked:
        own = dict(zip(item_ids, scores.tolist(), strict=True))
        assert len(own) == len(item_ids), "items of one id: compare by place instead"
        if key in expected_scores:
            assert own == pytest.approx(expected_scores[key], abs=1e-6, rel=0)
        # The expected order is ours up to ties: read through our scores, both orders fall alike.
        assert sorted(expected[key]) == sorted(item_ids)
        theirs = [own[item_id] for item_id in expected[key]]
        assert theirs == pytest.approx(scores.tolist(), abs=TIE, rel=0), f"question {key}"
