"""Feedback on single items equals the public code's: every metric of every pair under goldens/scorers/profile_T.

`in_T_bm25.json` holds the questions; the generator is `tiny/t5_ft` with four beams, prompts of 256 and answers of 32
tokens at most.
"""

import json

import pytest

from lamp_jax.config import REFERENCE, Answering, FeedbackItems
from lamp_jax.stages.feedback_items import run
from tests.goldens.cases import CASES

pytestmark = pytest.mark.golden

FOLDER = CASES / "goldens" / "scorers"
FILES = sorted(FOLDER.glob("profile_*/scores_0_-1.json"))
OURS = {"accuracy": {"accuracy"}, "mae": {"mae"}, "rouge-1": {"rouge-1", "rouge-l"}}
"""What is compared where a file has such a metric: those that we give a single answer."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"scorers-{path.parent.name}")
def test_metrics_of_every_pair_are_the_public_codes(path, tmp_path):
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
    run(options)
    found = json.loads((tmp_path / "scores.json").read_text())
    expected = json.loads(path.read_text())
    assert found.keys() == expected.keys()
    for key, metrics in expected.items():
        ours = {name.lower(): value for name, value in found[key].items()}
        theirs = {name.lower(): value for name, value in metrics.items()}
        (compared,) = (names for main, names in OURS.items() if main in theirs)
        assert compared <= ours.keys()
        for name in compared:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-6), (key, name)
