"""Pipeline from rankings to selected answers: feedback on retrievers, selector training, no leaks into its inputs."""

import json
import random
import re

import numpy as np
import pytest

from lamp_jax import cli
from lamp_jax.artifacts.feedback import read_records
from lamp_jax.artifacts.selector import Candidate, CandidateSet, QuestionCandidates, read_candidates, write_candidates
from lamp_jax.data.files import read_outputs
from lamp_jax.tasks.catalog import find_task
from tests.goldens import cases

MODEL = cases.CASES / "tiny" / "t5_ft"
SMALL = ("--hidden-size", 16, "--intermediate-size", 32, "--num-layers", 1, "--num-heads", 2, "--vocab-size", 300)
LEARNING = ("--batch-size", 16, "--accumulation", 2, "--step-size", "relative", "--learning-rate", 0.03)


def lamp(*words) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Questions of LaMP-4 in two orders, with golds and scores."""
    folder = tmp_path_factory.mktemp("files")
    source = cases.CASES / "synth" / "LaMP_4"
    for ranker in ("bm25", "recency"):
        given = ("--task", "LaMP-4", "--questions", source / "dev_questions.json", "--ranker", ranker)
        assert lamp("rank", *given, "--output", folder / "ranking.json", "--scores", folder / f"{ranker}_s.json") == 0
        given = ("--questions", source / "dev_questions.json", "--outputs", source / "dev_outputs.json")
        ranking = ("--ranking", folder / "ranking.json", "--output", folder / f"{ranker}.json")
        assert lamp("merge", *given, *ranking) == 0
        for path in folder.glob("ranking.json*"):
            path.unlink()
    return folder


def feedback_words(files, output, *more):
    pool = ("none", f"bm25={files / 'bm25.json'}", f"recency={files / 'recency.json'}")
    size = ("--num-retrieved", 2, "--max-length", 128, "--num-beams", 2, "--generation-max-length", 8)
    given = ("--task", "LaMP-4", "--pool", *pool, "--model", MODEL, *size, "--batch-size", 8)
    return ("feedback", "retrievers", *given, *more, "--output", output)


@pytest.fixture(scope="module")
def feedback(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("feedback") / "F"
    assert lamp(*feedback_words(files, folder)) == 0
    return folder


def data_words(files, feedback, output, *more):
    return ("selector-data", "--feedback", feedback, "--questions", files / "bm25.json", *more, "--output", output)


@pytest.fixture(scope="module")
def data(files, feedback, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "D.json"
    scores = ("--scores", *(f"{name}={files / f'{name}_s.json'}" for name in ("bm25", "recency")))
    assert lamp(*data_words(files, feedback, path, *scores)) == 0
    return path


def test_every_question_is_answered_once_with_every_retriever(files, feedback):
    questions = {one["id"]: one for one in json.loads((files / "bm25.json").read_text())}
    found = list(read_records(feedback, "retrievers"))
    assert len(found) == 3 * len(questions) == len({(one["question"], one["retriever"]) for one in found})
    for one in found:
        assert {"rouge-1", "rouge-L"} <= one["metrics"].keys()
        question = questions[one["question"]]
        if one["retriever"] == "none":
            assert "is the title for" not in one["prompt"]
        else:
            assert one["prompt"].count("is the title for") <= min(2, len(question["profile"]))


def test_the_shards_together_are_the_complete_set(files, feedback, tmp_path, capsys):
    assert lamp(*feedback_words(files, tmp_path / "F", "--shards", 2, "--shard", 1)) == 0
    assert "shard 1 of 2 is done, others are not" in capsys.readouterr().out
    assert lamp(*feedback_words(files, tmp_path / "F", "--shards", 2, "--shard", 0)) == 0

    def by_name(directory):
        return {(one["question"], one["retriever"]): one for one in read_records(directory, "retrievers")}

    assert by_name(tmp_path / "F") == by_name(feedback)


def test_a_truncated_run_resumes_to_the_same_bytes(files, feedback, tmp_path):
    import shutil

    name = "retrievers-0-of-1.jsonl"
    complete = (feedback / name).read_bytes()
    shutil.copytree(feedback, tmp_path / "F")
    record = json.loads((tmp_path / "F" / "run.json").read_text())
    (tmp_path / "F" / "run.json").write_text(json.dumps({**record, "finished": False}))
    (tmp_path / "F" / name).write_bytes(complete[: len(complete) // 2])
    assert lamp(*feedback_words(files, tmp_path / "F")) == 0
    assert (tmp_path / "F" / name).read_bytes() == complete


def test_candidates_equal_the_feedback(feedback, data):
    pool = read_candidates(data)
    assert (pool.task.name, pool.metric, pool.names) == (
        "LaMP-4",
        "rouge-1",
        ("none", "bm25", "recency"),
    )
    records = {(one["question"], one["retriever"]): one for one in read_records(feedback, "retrievers")}
    for question in pool.questions:
        for name, candidate in question.candidates.items():
            record = records[question.id, name]
            assert (candidate.prompt, candidate.output) == (record["prompt"], record["output"])
            assert candidate.reward == record["metrics"]["rouge-1"]
            assert bool(candidate.predictors) == (name != "none")


def test_questions_without_golds_are_answered_but_cannot_train_a_selector(files, tmp_path, capsys):
    for name in ("bm25", "recency"):
        questions = json.loads((files / f"{name}.json").read_text())[:4]
        for one in questions:
            del one["output"]
        (tmp_path / f"{name}.json").write_text(json.dumps(questions))
    assert lamp(*feedback_words(tmp_path, tmp_path / "F")) == 0
    assert lamp(*data_words(tmp_path, tmp_path / "F", tmp_path / "D.json")) == 0
    assert not read_candidates(tmp_path / "D.json").rewarded
    given = ("--train", tmp_path / "D.json", "--validation", tmp_path / "D.json", "--model", "scratch")
    assert lamp("train-selector", *given, "--output", tmp_path / "out") == 1
    assert "candidates without rewards; make it with `lamp selector-data --golds`" in capsys.readouterr().err
    assert lamp("select", "--data", tmp_path / "D.json", "--by", "best", "--output", tmp_path / "P.json") == 1
    golds = json.loads((files / "bm25.json").read_text())[:4]
    outputs = {"task": "LaMP_4", "golds": [{"id": one["id"], "output": one["output"]} for one in golds]}
    (tmp_path / "golds.json").write_text(json.dumps(outputs))
    assert lamp(*data_words(tmp_path, tmp_path / "F", tmp_path / "E.json", "--golds", tmp_path / "golds.json")) == 1
    assert "has no metrics, because references were missing" in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--temperature", 0), ("--batch-size", 8, "--accumulation", 3)])
def test_inconsistent_options_are_refused(data, options, tmp_path, capsys):
    given = ("--train", data, "--validation", data, "--model", "scratch", "--output", tmp_path / "S")
    assert lamp("train-selector", *given, *options) == 1
    assert " ".join(map(str, options[-2:])) in capsys.readouterr().err


@pytest.fixture(scope="module")
def selector(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("selector") / "S"
    given = ("--train", data, "--validation", data, "--model", "scratch", "--max-length", 192, "--epochs", 1)
    assert lamp("train-selector", *given, *SMALL, *LEARNING, "--mode", "post", "--output", output) == 0
    return output


def test_a_selector_chooses_answers_and_their_retrievers(data, selector, tmp_path, capsys):
    assert lamp("select", "--selector", selector, "--data", data, "--output", tmp_path / "P.json") == 0
    assert "chosen" in capsys.readouterr().out
    pool = read_candidates(data)
    content = json.loads((tmp_path / "P.json").read_text())
    assert content["task"] == "LaMP_4"
    for question, one in zip(pool.questions, content["golds"], strict=True):
        assert (one["id"], one["output"]) == (question.id, question.candidates[one["retriever"]].output)
    assert read_outputs(tmp_path / "P.json").by_id == {one["id"]: one["output"] for one in content["golds"]}
    found = json.loads((tmp_path / "P.scores.json").read_text())
    assert found["worst"]["reward"] <= found["chosen"]["reward"] <= found["best"]["reward"]
    assert found["best"]["success_rate"] == 1
    assert sum(one["times_chosen"] for one in found["retrievers"].values()) == len(pool.questions)
    rewards = [
        question.candidates[one["retriever"]].reward
        for question, one in zip(pool.questions, content["golds"], strict=True)
    ]
    assert found["chosen"]["mean"]["rouge-1"] == pytest.approx(np.mean(rewards))


def test_a_selector_can_choose_among_some_of_its_retrievers(data, selector, tmp_path):
    asked = ("--pool", "recency", "none")
    assert lamp("select", "--selector", selector, "--data", data, *asked, "--output", tmp_path / "P.json") == 0
    assert {one["retriever"] for one in json.loads((tmp_path / "P.json").read_text())["golds"]} <= {"recency", "none"}


def test_the_same_training_again_does_nothing_and_a_selector_loads_in_hugging_face(data, selector, capsys):
    given = ("--train", data, "--validation", data, "--model", "scratch", "--max-length", 192, "--epochs", 1)
    assert lamp("train-selector", *given, *SMALL, *LEARNING, "--mode", "post", "--output", selector) == 0
    assert "already trained" in capsys.readouterr().out
    pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    _, report = AutoModelForSequenceClassification.from_pretrained(selector, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


@pytest.mark.parametrize("by", ["wig", "nqc", "sigma-max", "sigma-50", "best", "worst"])
def test_predictors_and_oracles_choose_without_a_model(data, by, tmp_path):
    assert lamp("select", "--by", by, "--data", data, "--train", data, "--output", tmp_path / "P.json") == 0
    assert {one["retriever"] for one in json.loads((tmp_path / "P.json").read_text())["golds"]} <= {
        "none",
        "bm25",
        "recency",
    }


def change(path, target, edit):
    content = json.loads(path.read_text())
    edit(content)
    target.write_text(json.dumps(content))
    return target


def rename_retriever(content):
    content["pool"][1] = "dense"
    for one in content["questions"]:
        one["candidates"]["dense"] = one["candidates"].pop("bm25")


def test_a_retriever_unknown_to_the_selector_is_an_error(data, selector, tmp_path, capsys):
    other = change(data, tmp_path / "D.json", rename_retriever)
    assert lamp("select", "--selector", selector, "--data", other, "--output", tmp_path / "P.json") == 1
    assert re.search(
        r"not trained on 1 of 3 retrievers \(dense\), only on none, bm25, recency", capsys.readouterr().err
    )
    assert lamp("select", "--selector", MODEL, "--data", data, "--output", tmp_path / "P.json") == 1
    assert "no selector" in capsys.readouterr().err


def test_different_pools_of_two_files_are_an_error(data, tmp_path, capsys):
    other = change(data, tmp_path / "D.json", rename_retriever)
    given = ("--train", data, "--validation", other, "--model", "scratch", "--output", tmp_path / "out")
    assert lamp("train-selector", *given) == 1
    error = capsys.readouterr().err
    assert "differ in their pool: none, bm25, recency and none, dense, recency" in error
    assert not (tmp_path / "out").exists()


def test_a_question_missing_for_a_retriever_is_an_error(files, feedback, tmp_path, capsys):
    import shutil

    shutil.copytree(feedback, tmp_path / "F")
    path = tmp_path / "F" / "retrievers-0-of-1.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    gone = next(line for line in lines if json.loads(line)["retriever"] == "recency")
    path.write_text("".join(line for line in lines if line != gone))
    assert lamp(*data_words(files, tmp_path / "F", tmp_path / "D.json")) == 1
    error = capsys.readouterr().err
    assert "no feedback of 'recency' for 1 of" in error
    assert json.loads(gone)["question"] in error


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (("--metric", "accuracy"), r"has no 'accuracy', only .*rouge-1"),
        (("--scores", "dense=x.json"), "--scores dense: not in the feedback's pool of none, bm25, recency"),
        (("--golds", "nowhere.json"), "nowhere.json: no such file"),
    ],
)
def test_invalid_options_of_selector_data_are_an_error(files, feedback, more, problem, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.json").write_text(
        json.dumps({one["id"]: [] for one in json.loads((files / "bm25.json").read_text())})
    )
    assert lamp(*data_words(files, feedback, "D.json", *more)) == 1
    assert re.search(problem, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("pool", "problem"),
    [
        (("none",), "two retrievers or more"),
        (("bm25", "none"), "--pool bm25: give NAME=FILE"),
        (("none=x.json", "a=b"), "--pool none=x.json: give NAME=FILE"),
        (("a=x.json", "a=y.json"), "'a' occurs twice"),
    ],
)
def test_an_invalid_pool_is_an_error(pool, problem, tmp_path, capsys):
    given = ("--task", "LaMP-4", "--pool", *pool, "--model", MODEL, "--output", tmp_path / "F")
    assert lamp("feedback", "retrievers", *given) == 1
    assert problem in capsys.readouterr().err


def test_files_of_a_pool_must_have_the_same_questions(files, tmp_path, capsys):
    questions = json.loads((files / "recency.json").read_text())
    questions[2]["output"] = "another"
    (tmp_path / "recency.json").write_text(json.dumps(questions))
    (tmp_path / "bm25.json").write_text((files / "bm25.json").read_text())
    assert lamp(*feedback_words(tmp_path, tmp_path / "F")) == 1
    assert questions[2]["id"] in capsys.readouterr().err


# --- learning, only from the golds


def informative_candidates(count, *, seed, shuffled):
    """Questions in which a word of each prompt identifies the best retriever; `shuffled`: golds are unpredictable."""
    draw = random.Random(seed)
    questions = []
    for number in range(count):
        best = draw.choice("ab")
        rewards = {name: float((draw.choice("ab") if shuffled else best) == name) for name in "ab"}
        words = {name: "sun" if name == best else "rain" for name in "ab"}
        candidates = {
            name: Candidate(f"the {words[name]} and {draw.choice('xyz')}", f"{rewards[name]:.0f}", rewards[name])
            for name in "ab"
        }
        questions.append(QuestionCandidates(str(number), "", "1", {name: candidates[name] for name in "ab"}))
    return CandidateSet(find_task("LaMP-3"), "mae", ("a", "b"), questions)


@pytest.mark.parametrize("shuffled", [False, True], ids=["true golds", "shuffled golds"])
def test_the_gain_comes_only_from_the_golds(shuffled, tmp_path):
    sizes = {"train": 160, "validation": 40, "test": 200}
    for seed, (name, count) in enumerate(sizes.items()):
        write_candidates(tmp_path / f"{name}.json", informative_candidates(count, seed=seed, shuffled=shuffled))
    given = ("--train", tmp_path / "train.json", "--validation", tmp_path / "validation.json", "--model", "scratch")
    training = (*SMALL, "--batch-size", 16, "--accumulation", 1, "--step-size", "relative", "--learning-rate", 0.03)
    length = ("--max-length", 16, "--epochs", 6, "--dropout", 0, "--temperature", 0.3)
    assert lamp("train-selector", *given, *training, *length, "--mode", "pre", "--output", tmp_path / "S") == 0
    chosen = ("--selector", tmp_path / "S", "--data", tmp_path / "test.json", "--output", tmp_path / "P.json")
    assert lamp("select", *chosen) == 0
    found = json.loads((tmp_path / "P.scores.json").read_text())
    single = max(one["reward"] for one in found["retrievers"].values())
    if shuffled:
        assert found["chosen"]["reward"] < single + 0.1
    else:
        assert found["chosen"]["reward"] > 0.95 > single + 0.3
