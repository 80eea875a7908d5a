"""Feedback: equal to the public code's, every metric of every pair under goldens/scorers/profile_T, and of retr_T_R.

In profile_T each question is answered with single items, in retr_T_R with the first two of each retriever R.
`in_T_R.json` has the questions; the generator is `tiny/t5_ft` with four beams, prompts of at most 256 and answers of at
most 32 tokens.
"""

import json

import pytest

from lamp_jax.artifacts.feedback import read_records
from lamp_jax.options import REFERENCE, Answering, FeedbackItems, FeedbackRetrievers, Prompting
from lamp_jax.stages import feedback_items, feedback_retrievers
from tests.goldens.cases import CASES

pytestmark = pytest.mark.golden

FOLDER = CASES / "goldens" / "scorers"
FILES = sorted(FOLDER.glob("profile_*/scores_0_-1.json"))
OURS = {"accuracy": {"accuracy"}, "mae": {"mae"}, "rouge-1": {"rouge-1", "rouge-l"}}
"""Metrics that are compared if a file has them: those that lamp computes for a single answer."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"scorers-{path.parent.name}")
def test_metrics_of_every_pair_equal_the_public_codes(path, tmp_path):
    task = path.parent.name.removeprefix("profile_")
    options = FeedbackItems(
        task=f"LaMP-{task}",
        merged=str(FOLDER / f"in_{task}_bm25.json"),
        model=str(CASES / "tiny" / "t5_ft"),
        output=str(tmp_path / "feedback"),
        profile_size=4,
        batch_size=8,
        max_length=256,
        answering=Answering(decode="beam", num_beams=4, generation_max_length=32),
        export_reference=str(tmp_path / "scores.json"),
        compatibility=REFERENCE,
    )
    feedback_items.run(options)
    found = json.loads((tmp_path / "scores.json").read_text())
    expected = json.loads(path.read_text())
    assert found.keys() == expected.keys()
    for key, metrics in expected.items():
        check(found[key], metrics, key)


def check(metrics, expected, key):
    ours = {name.lower(): value for name, value in metrics.items()}
    theirs = {name.lower(): value for name, value in expected.items()}
    (compared,) = (names for main, names in OURS.items() if main in theirs)
    assert compared <= ours.keys()
    for name in compared:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6), (key, name)


POOLS = {}
for path in sorted(FOLDER.glob("retr_*/scores.json")):
    _, number, retriever = path.parent.name.split("_")
    if (FOLDER / f"in_{number}_{retriever}.json").exists():
        POOLS.setdefault(number, []).append(retriever)


@pytest.mark.parametrize("task", POOLS, ids="scorers-retr_{}".format)
def test_prompts_answers_and_metrics_of_every_retriever_equal_the_public_codes(task, tmp_path):
    files = {name: str(FOLDER / f"in_{task}_{name}.json") for name in POOLS[task]}
    options = FeedbackRetrievers(
        task=f"LaMP-{task}",
        pool=tuple(name if name == "none" else f"{name}={file}" for name, file in files.items()),
        model=str(CASES / "tiny" / "t5_ft"),
        output=str(tmp_path / "feedback"),
        prompting=Prompting(num_retrieved=2, max_length=256),
        batch_size=8,
        answering=Answering(decode="beam", num_beams=4, generation_max_length=32),
        compatibility=REFERENCE,
    )
    feedback_retrievers.run(options)
    found = {(one["retriever"], one["question"]): one for one in read_records(tmp_path / "feedback", "retrievers")}
    for name in files:
        expected = json.loads((FOLDER / f"retr_{task}_{name}" / "scores.json").read_text())
        for key, theirs in expected.items():
            ours = found[name, key]
            assert (ours["prompt"], ours["output"]) == (theirs["input"], theirs["output"])
            check(ours["metrics"], theirs["metric"], (name, key))
    assert len(found) == len(files) * len(expected)
