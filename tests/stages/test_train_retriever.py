"""`lamp train-retriever`: encoders that other libraries load, the same bytes each time, and errors with remedies."""

import json
import math
import random

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from lamp_jax import cli
from lamp_jax.config import Devices
from lamp_jax.data.files import read_questions
from lamp_jax.encoding import open_encoder
from lamp_jax.models.bert import BertConfig
from lamp_jax.retrieval.dense import embed_all
from lamp_jax.retrieval.texts import documents_of, query_of
from lamp_jax.tasks.catalog import find_task
from lamp_jax.training.checkpoints import Checkpoints

TASK = find_task("LaMP-2")
WORDS = ["river", "stone", "cloud", "ember", "frost", "maple", "harbor", "lantern", "meadow", "violet"]
COUNT, ITEMS, EQUAL = 20, 3, 4
"""Number of questions, of items per question, and of questions whose items have equal rewards."""
FILES = ("model.safetensors", "config.json", "tokenizer.json", "retriever.json")


def lamp(*words) -> int:
    return cli.main([str(word) for word in words])


def make_questions():
    draw = random.Random(0)

    def text():
        return " ".join(draw.choices(WORDS, k=3))

    for number in range(COUNT):
        profile = [
            {
                "id": f"{number}-{place}",
                "description": text(),
                "tag": "comedy",
                "date": f"20{place + 10}-0{1 + number % 9}-01",
            }
            for place in range(ITEMS)
        ]
        yield {"id": str(number), "input": TASK.template.format(text=text()), "profile": profile, "output": "comedy"}


def make_feedback():
    """Feedback in the public code's format; items of the first questions have equal rewards, so no training signal."""
    draw = random.Random(1)
    return {
        f"{number}-{number}-{place}": {
            "accuracy": 1.0 if number < EQUAL else float((place + number) % ITEMS == 0),
            "likelihood": -draw.random(),
        }
        for number in range(COUNT)
        for place in range(ITEMS)
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "questions.json").write_text(json.dumps(list(make_questions())))
    (folder / "feedback.json").write_text(json.dumps(make_feedback()))
    return folder


def words(data, output, *more, feedback="feedback.json"):
    size = ("--hidden-size", 16, "--intermediate-size", 32, "--num-layers", 1, "--num-heads", 2, "--vocab-size", 250)
    given = ("--task", "LaMP-2", "--questions", data / "questions.json", "--feedback", data / feedback)
    short = ("--max-length", 16, "--profile-size", ITEMS, "--batch-size", 8, "--accumulation", 1)
    steps = ("--epochs", 2, "--learning-rate", "1e-2", "--reward-at", 1, "--held-out", 0.2)
    return ("train-retriever", *given, "--encoder", "scratch", *size, *short, *steps, *more, "--output", output)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Output of an uninterrupted run of ROPG-KD."""
    output = tmp_path_factory.mktemp("trained") / "kd"
    assert lamp(*words(data, output)) == 0
    return output


def read_record(output):
    return json.loads((output / "run.json").read_text())


def assert_same_files(one, other):
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def texts_of(data, *, use_date):
    questions = read_questions(data / "questions.json", task=TASK)
    queries = [query_of(question, TASK) for question in questions]
    return queries + [text for question in questions for text in documents_of(question, TASK, use_date=use_date)]


def embed(directory, texts):
    return embed_all(texts, open_encoder(str(directory), Devices(), max_length=16).documents)


def test_the_record_counts_questions_with_different_and_with_equal_rewards(trained):
    record = read_record(trained)
    assert record["finished"]
    assert record["questions"] + record["skipped_equal_rewards"] == COUNT - round(0.2 * COUNT)
    assert 0 < record["skipped_equal_rewards"] <= EQUAL
    assert record["step"] == 2 * math.ceil(record["questions"] / 8)
    assert 0 <= record["before"] <= 1
    assert 0 <= record["best"] <= 1


def test_training_changes_every_parameter_of_the_encoder(data, trained, tmp_path):
    from safetensors.numpy import load_file

    assert lamp(*words(data, tmp_path / "still", "--learning-rate", 0)) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "still", trained))
    assert before.keys() == after.keys()
    # The keys' biases do not change the softmax: their gradient is 0 except for rounding.
    still = {name for name in after if np.abs(before[name] - after[name]).max() < 1e-3}
    assert {name for name in still if not name.endswith("key.bias")} == set()


def test_hugging_face_reads_the_encoder_and_gives_the_same_vectors(data, trained):
    torch = pytest.importorskip("torch")
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    assert BertConfig.from_hf(json.loads((trained / "config.json").read_text()), source="config").hidden_size == 16
    texts = texts_of(data, use_date=True)[::5]
    given = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=16)
    with torch.no_grad():
        hidden = model(**given).last_hidden_state
    mask = given["attention_mask"][..., None]
    pooled = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    np.testing.assert_allclose(embed(trained, texts), pooled, atol=1e-5)
    assert np.abs(pooled - pooled[0]).max() > 0.01


def test_two_runs_give_the_same_bytes(data, trained, tmp_path):
    """Including the tokenizer's training."""
    assert lamp(*words(data, tmp_path / "again")) == 0
    assert_same_files(tmp_path / "again", trained)
    assert read_record(tmp_path / "again")["before"] == read_record(trained)["before"]


def test_the_same_command_again_does_nothing_and_another_is_refused(data, trained, capsys):
    weights = (trained / "model.safetensors").stat().st_mtime_ns
    assert lamp(*words(data, trained)) == 0
    assert "already trained" in capsys.readouterr().out
    assert lamp(*words(data, trained, "--method", "rl")) == 1
    assert "other settings or inputs" in capsys.readouterr().err
    assert (trained / "model.safetensors").stat().st_mtime_ns == weights


def saved_state(output):
    """All arrays of the newest checkpoint: parameters, optimizer, step."""
    (newest,) = [path for path in (output / "checkpoints").iterdir() if path.name.isdigit()]
    with pytest.warns(UserWarning, match="Sharding info"):  # no sharding is requested
        return ocp.load(newest)


@pytest.mark.parametrize(
    "more",
    [("--method", "kd"), pytest.param(("--method", "rl", "--sampled-items", 2), marks=pytest.mark.slow)],
    ids=["kd", "rl"],
)
def test_a_resumed_training_is_bit_identical(data, tmp_path, monkeypatch, more):
    assert lamp(*words(data, tmp_path / "whole", *more)) == 0
    save = Checkpoints.save

    def save_and_die(self, step, *given):
        save(self, step, *given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        assert lamp(*words(data, tmp_path / "cut", *more)) == 130
    assert not read_record(tmp_path / "cut")["finished"]
    assert lamp(*words(data, tmp_path / "cut", *more)) == 0
    assert_same_files(tmp_path / "whole", tmp_path / "cut")
    jax.tree.map(np.testing.assert_array_equal, saved_state(tmp_path / "whole"), saved_state(tmp_path / "cut"))
    facts = ("before", "best", "best_step", "step", "questions", "skipped_equal_rewards")
    records = [read_record(tmp_path / name) for name in ("whole", "cut")]
    assert [records[0][fact] for fact in facts] == [records[1][fact] for fact in facts]


def rank(data, encoder, output, *more):
    words = ("--task", "LaMP-2", "--questions", data / "questions.json", "--ranker", "dense", "--max-length", 16)
    return lamp("rank", *words, "--encoder", encoder, "--batch-tokens", 128, *more, "--output", output)


def expected_ranking(data, encoder, *, use_date):
    questions, texts = read_questions(data / "questions.json"), texts_of(data, use_date=use_date)
    vectors = embed(encoder, texts).astype(np.float64)
    for place, question in enumerate(questions):
        documents = vectors[COUNT + place * ITEMS : COUNT + (place + 1) * ITEMS]
        order = np.argsort(-(documents @ vectors[place]), kind="stable")
        yield question.id, [str(question.profile[one]["id"]) for one in order]


def test_ranking_formats_documents_as_in_the_encoders_training(data, trained, tmp_path):
    """With dates, without an option of `lamp rank`."""
    assert json.loads((trained / "retriever.json").read_text())["use_date"] is True
    assert rank(data, trained, tmp_path / "r.json") == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert found == dict(expected_ranking(data, trained, use_date=True))
    assert found != dict(expected_ranking(data, trained, use_date=False))


def test_an_encoder_trained_without_dates_ranks_without_them(data, tmp_path, capsys):
    assert lamp(*words(data, tmp_path / "plain", "--no-use-date", "--epochs", 1)) == 0
    assert json.loads((tmp_path / "plain" / "retriever.json").read_text())["use_date"] is False
    assert rank(data, tmp_path / "plain", tmp_path / "r.json") == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert found == dict(expected_ranking(data, tmp_path / "plain", use_date=False))
    assert rank(data, tmp_path / "plain", tmp_path / "other.json", "--use-date") == 1
    assert "trained on documents without dates" in capsys.readouterr().err


def test_validation_questions_may_be_given(data, tmp_path):
    given = ("--validation", data / "questions.json", "--validation-feedback", data / "feedback.json")
    assert lamp(*words(data, tmp_path / "out", *given, "--epochs", 1)) == 0
    assert read_record(tmp_path / "out")["questions"] == COUNT - EQUAL
    assert read_record(tmp_path / "out")["skipped_equal_rewards"] == EQUAL


def with_changed_feedback(data, folder, change):
    """Copy of the data with changed feedback."""
    metrics = make_feedback()
    change(metrics)
    (folder / "questions.json").write_bytes((data / "questions.json").read_bytes())
    (folder / "feedback.json").write_text(json.dumps(metrics))
    return folder


def check_error(data, folder, capsys, message, *more, change=lambda metrics: None):
    output = folder / "out"
    assert lamp(*words(with_changed_feedback(data, folder, change), output, *more)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not output.exists()  # no output blocks the corrected command


def test_a_reward_that_is_not_a_number_is_an_error(data, tmp_path, capsys):
    def change(metrics):
        metrics["7-7-1"]["accuracy"] = math.nan

    check_error(data, tmp_path, capsys, "question '7': the feedback's accuracy is nan", change=change)


def test_missing_feedback_is_an_error_that_names_the_command(data, tmp_path, capsys):
    def change(metrics):
        del metrics["7-7-1"], metrics["9-9-0"]

    message = "no feedback for 2 of 60 question-item pairs (7-7-1, 9-9-0); make it with `lamp feedback items"
    check_error(data, tmp_path, capsys, message, change=change)


def test_feedback_without_the_reward_is_an_error(data, tmp_path, capsys):
    def change(metrics):
        for one in metrics.values():
            del one["likelihood"]

    check_error(data, tmp_path, capsys, "no 'likelihood', only accuracy", "--reward", "likelihood", change=change)


def test_feedback_with_only_equal_rewards_is_an_error(data, tmp_path, capsys):
    def change(metrics):
        metrics.update({key: {"accuracy": 1.0} for key in metrics})

    check_error(data, tmp_path, capsys, "nothing can be learned", change=change)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--accumulation", 3), "--batch-size 8 is not a multiple of --accumulation 3"),
        (("--score-temperature", 0), "--score-temperature 0.0: must be above 0"),
        (("--reward-temperature", "nan"), "must be above 0"),
        (("--sampled-items", 0), "must be 1 or more"),
        (("--held-out", 0), "leaves none for training or for validation"),
        (("--ropg", "padded", "--score-temperature", 2), "--ropg padded has one temperature"),
    ],
)
def test_inconsistent_options_are_refused(data, tmp_path, capsys, more, message):
    check_error(data, tmp_path, capsys, message, *more)


def test_items_without_dates_are_an_error_that_names_the_remedy(data, tmp_path, capsys):
    questions = list(make_questions())
    del questions[5]["profile"][1]["date"]
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    (tmp_path / "feedback.json").write_bytes((data / "feedback.json").read_bytes())
    assert lamp(*words(tmp_path, tmp_path / "out")) == 1
    assert "train without dates: --no-use-date" in capsys.readouterr().err
