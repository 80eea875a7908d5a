"""Functions of the library: documentation examples, equality with the commands, and results in pandas."""

import doctest
import inspect
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import lamp_jax as lamp
from lamp_jax import api, api_training, cli
from lamp_jax.artifacts.adapters import open_store
from lamp_jax.datasets.synthetic import generate as synthesize
from lamp_jax.errors import LampError

MODEL = str(Path(__file__).parent / "cases" / "tiny" / "t5_ft")
TASK = lamp.task("LaMP-3")
FUNCTIONS = sorted(api.__all__)


def make_questions(count: int, split="train"):
    made = synthesize(TASK, questions=count, profile_size=6, seed=0, split=split)
    return [question for question, _ in made]


QUESTIONS, DEV = make_questions(16), make_questions(8, "dev")


@pytest.fixture(scope="module")
def model():
    return lamp.load(MODEL)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """The questions as the commands read them."""
    folder = tmp_path_factory.mktemp("files")
    for name, questions in (("train", QUESTIONS), ("dev", DEV)):
        (folder / f"{name}.json").write_text(json.dumps([asdict(question) for question in questions]))
    return {name: folder / f"{name}.json" for name in ("train", "dev")}


def run(*words) -> None:
    assert cli.main([str(word) for word in words]) == 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_examples_of_the_documentation_run(name, model):
    prompts = lamp.prompts(QUESTIONS[:8], TASK, model.tokenizer, num_retrieved=2, max_length=192)
    names = {"lamp": lamp, "questions": QUESTIONS, "model": model, "tokenizer": model.tokenizer, "prompts": prompts}
    names["model_directory"] = MODEL
    function = getattr(api, name)
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, module=False, globs=names)
    assert example.examples, "no example"
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example)
    assert result.failed == 0


def test_the_names_are_found_in_any_order_of_imports():
    """`tasks` is a package too, which is found under its name once it is imported."""
    program = """
import sys
import lamp_jax as lamp
assert set(lamp.__all__) == {name for name in dir(lamp) if not name.startswith("_")}
names = [one.name for one in lamp.tasks()]
import lamp_jax.tasks.catalog
assert [one.name for one in lamp.tasks()] == names
for name in lamp.__all__:
    assert callable(getattr(lamp, name)), name
from lamp_jax import *
assert task("LaMP-3").name == "LaMP-3"
assert not {"jax", "flax", "transformers", "pandas"} & set(sys.modules)
try:
    lamp.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_public_names_are_typed():
    source = inspect.getsource(lamp)
    listed = source[source.index("if TYPE_CHECKING:") : source.index("__all__")]
    assert all(name in listed for name in lamp.__all__)


def test_a_script_without_a_main_guard_starts_no_process(tmp_path):
    """A process pool would run the script again in each of its processes."""
    (tmp_path / "script.py").write_text(
        "import lamp_jax as lamp\n"
        "from lamp_jax.datasets.synthetic import generate\n"
        "made = generate(lamp.task('LaMP-3'), questions=40, profile_size=40, seed=0, split='train', words=3000)\n"
        "ranked = lamp.rank([question for question, _ in made], 'LaMP-3')\n"
        "print('ranked', len(ranked))\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "ranked 40\n"


def test_ranking_equals_the_command(files, tmp_path):
    for retriever in ("bm25", "recency", "random"):
        ranking = tmp_path / f"{retriever}.json"
        words = ("rank", "--task", TASK.name, "--questions", files["dev"], "--ranker", retriever, "--output", ranking)
        run(*words, "--scores", tmp_path / f"{retriever}.scores.json")
        ranked = lamp.rank(DEV, TASK, retriever)
        assert {one.id: [item["id"] for item in one.profile] for one in ranked} == json.loads(ranking.read_text())
        assert {one.id: list(one.scores) for one in ranked} == json.loads(
            (tmp_path / f"{retriever}.scores.json").read_text()
        )


def test_answers_equal_the_command(files, model, tmp_path):
    words = ("--questions", files["dev"], "--model", MODEL, "--num-retrieved", 2, "--max-length", 192)
    run(
        "generate",
        "--task",
        TASK.name,
        *words,
        "--decode",
        "labels",
        "--batch-size",
        8,
        "--output",
        tmp_path / "a.json",
    )
    prompts = lamp.prompts(
        lamp.read_questions(files["dev"], TASK), TASK, model.tokenizer, num_retrieved=2, max_length=192
    )
    answers = lamp.generate(model, prompts, decode="labels", batch_size=8)
    wanted = json.loads((tmp_path / "a.json").read_text())["golds"]
    assert [{"id": one.id, "output": one.text} for one in answers] == wanted
    scores = json.loads((tmp_path / "a.scores.json").read_text())["tasks"]["LaMP_3"]
    found = lamp.score(TASK, answers, DEV)
    assert (found.mean, found.per_sample) == (scores["mean"], scores["per_sample"])
    (row,) = lamp.compare({"tiny": found})
    interval = scores["confidence_interval"]
    assert (row.mean, row.low, row.high) == (scores["mean"]["MAE"], interval["low"], interval["high"])


def test_generated_text_has_no_probabilities(model):
    prompts = lamp.prompts(DEV[:2], TASK, model.tokenizer, num_retrieved=0)
    answers = lamp.generate(model, prompts, decode="greedy", generation_max_length=4, batch_size=8)
    assert [(one.id, one.probabilities) for one in answers] == [(question.id, None) for question in DEV[:2]]


def generator_settings():
    return lamp.GeneratorTraining(
        retrievers=("none", "bm25"),
        prompting=lamp.Prompting(2, 64),
        learning=lamp.Learning(epochs=1, batch_size=8, learning_rate=1e-2),
        answering=lamp.Answering("labels"),
        scratch=lamp.Scratch(16, 32, 1, 1, 2, 300),
    )


@pytest.mark.parametrize("start", ["scratch", MODEL])
def test_a_finetuned_model_equals_the_command(start, files, tmp_path):
    size = ("--d-model", 16, "--d-ff", 32, "--num-layers", 1, "--num-decoder-layers", 1, "--num-heads", 2)
    words = ("--retrievers", "none", "bm25", "--num-retrieved", 2, "--max-length", 64, "--epochs", 1, "--batch-size", 8)
    words += ("--learning-rate", 0.01, "--decode", "labels", "--model", start, *size, "--vocab-size", 300)
    run(
        "train",
        "--task",
        TASK.name,
        "--train",
        files["train"],
        "--validation",
        files["dev"],
        *words,
        "--output",
        tmp_path / "a",
    )
    found = lamp.finetune(start, QUESTIONS, DEV, TASK, generator_settings(), output=tmp_path / "b")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert found.facts["best"] == json.loads((tmp_path / "a" / "run.json").read_text())["best"]


def test_a_finished_run_is_reused_and_another_run_is_refused(tmp_path, monkeypatch):
    from lamp_jax.training import generator

    settings = generator_settings()
    first = lamp.finetune(MODEL, QUESTIONS, DEV, TASK, settings, output=tmp_path / "run")
    monkeypatch.setattr(generator, "fit", None)
    again = lamp.finetune(MODEL, QUESTIONS, DEV, TASK, settings, output=tmp_path / "run")
    assert again.facts["best"] == first.facts["best"]
    with pytest.raises(LampError, match="exists with other settings or inputs"):
        lamp.finetune(MODEL, QUESTIONS[1:], DEV, TASK, settings, output=tmp_path / "run")


def test_a_temporary_directory_lives_as_long_as_its_model():
    model = lamp.finetune("scratch", QUESTIONS, DEV, TASK, generator_settings())
    directory = Path(model.directory)
    assert (directory / "model.safetensors").exists()
    del model
    assert not directory.exists()


def test_feedback_and_retriever_equal_the_commands(files, model, tmp_path):
    words = ("--task", TASK.name, "--merged", files["train"], "--model", MODEL, "--profile-size", 3, "--batch-size", 8)
    run("feedback", "items", *words, "--decode", "labels", "--max-length", 192, "--output", tmp_path / "feedback")
    rows = lamp.feedback(model, QUESTIONS, TASK, profile_size=3, decode="labels", max_length=192, batch_size=8)
    lines = (tmp_path / "feedback" / "items-0-of-1.jsonl").read_text().splitlines()
    records = {(one["question"], one["item"]): one for one in map(json.loads, lines)}
    assert len(rows) == len(records)
    for row in rows:
        record = records[row.question, row.item]
        assert (row.rank, row.output, row.metrics) == (record["rank"], record["output"], record["metrics"])
        assert 0 <= row.reward <= 1
    size = ("--hidden-size", 16, "--intermediate-size", 32, "--num-layers", 1, "--num-heads", 2, "--vocab-size", 300)
    words = ("--epochs", 1, "--batch-size", 8, "--accumulation", 1, "--max-length", 32, "--held-out", 0.25)
    words += ("--profile-size", 3, "--learning-rate", 0.01, "--encoder", "scratch", *size)
    files = ("--questions", files["train"], "--feedback", tmp_path / "feedback", "--output", tmp_path / "a")
    run("train-retriever", "--task", TASK.name, *files, *words)
    settings = lamp.RetrieverTraining(
        scratch=lamp.ScratchEncoder(16, 32, 1, 2, 300),
        profile_size=3,
        held_out=0.25,
        max_length=32,
        learning=lamp.Learning(epochs=1, batch_size=8, learning_rate=1e-2, weight_decay=0.0),
    )
    words = ("scratch", QUESTIONS, rows, TASK, settings)
    encoder = lamp.train_retriever(*words, output=tmp_path / "b")
    for name in ("model.safetensors", "retriever.json", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    ranked, read = (lamp.rank(DEV, TASK, "dense", encoder=one) for one in (encoder, tmp_path / "a"))
    assert ranked == read
    with pytest.raises(LampError, match="no feedback for"):
        lamp.train_retriever("scratch", QUESTIONS, rows[1:], TASK, settings)


def test_adapters_equal_the_command(files, model, tmp_path):
    words = ("--users-per-step", 8, "--max-length", 64, "--target-length", 8, "--rank", 2, "--alpha", 8, "--epochs", 2)
    words += ("--learning-rate", 0.05, "--tokens-per-device", 256, "--batch-size", 4)
    run(
        "train-adapters",
        "--task",
        TASK.name,
        "--questions",
        files["dev"],
        "--model",
        MODEL,
        *words,
        "--output",
        tmp_path / "a",
    )
    settings = lamp.AdapterTraining(
        users_per_step=8,
        tokens_per_device=256,
        max_length=64,
        target_length=8,
        lora=lamp.Lora(2, 8),
        learning=lamp.Optimization(epochs=2, batch_size=4, learning_rate=0.05),
    )
    trained = lamp.adapters(model, DEV, TASK, settings)
    store = open_store(tmp_path / "a")
    assert list(store.scan()) == trained.users
    users = [entry.user for entry in trained.users]
    wanted, found = store.read(users), trained.store.read(users)
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted)
    prompts = lamp.prompts(DEV, TASK, model.tokenizer, num_retrieved=0)
    own = lamp.generate(model, prompts, decode="labels", adapters=trained, batch_size=8)
    alone = lamp.generate(model, prompts, decode="labels", batch_size=8)
    assert all(one.probabilities != other.probabilities for one, other in zip(own, alone, strict=True))


def test_a_given_mesh_is_used_and_an_unsuitable_mesh_is_refused(model):
    import jax

    from lamp_jax.sharding import make_mesh

    assert model.mesh.shape == {"data": 8, "model": 1}
    with jax.set_mesh(make_mesh(1, 1, devices=jax.devices()[:1])):
        one = lamp.load(MODEL)
    assert one.mesh.shape == {"data": 1, "model": 1}
    prompts = lamp.prompts(DEV[:3], TASK, one.tokenizer, num_retrieved=1)
    answers = lamp.generate(one, prompts, decode="labels", batch_size=3)
    assert [answer.text for answer in answers] == [
        answer.text for answer in lamp.generate(model, prompts, decode="labels", batch_size=8)
    ]
    with pytest.raises(LampError, match="batch_size 3 does not divide over 8"):
        lamp.generate(model, prompts, decode="labels", batch_size=3)
    with jax.set_mesh(jax.make_mesh((8,), ("rows",))), pytest.raises(LampError, match=r"axes \('rows',\)"):
        lamp.load(MODEL)


def test_groups_have_separate_rows_and_columns_of_the_table():
    golds = {str(number): "3" for number in range(6)}
    scores = {
        "one": lamp.score(TASK, dict.fromkeys(golds, "3"), golds),
        "other": lamp.score(TASK, dict.fromkeys(golds, "2"), golds),
    }
    rows = lamp.compare(scores, against="one", groups={key: "ab"[int(key) % 2] for key in golds})
    assert [(row.name, row.group, row.n, row.mean) for row in rows] == [
        (name, group, count, mean)
        for name, mean in (("one", 0.0), ("other", 1.0))
        for group, count in (("all", 6), ("a", 3), ("b", 3))
    ]
    head, first, second = str(rows).splitlines()
    assert head.split() == ["retriever", "MAE", "95", "%", "interval", "p", "vs", "one", "a", "b"]
    assert (first.split()[:2], second.split()[:2]) == (["one", "0.000"], ["other", "1.000"])
    assert "p" not in str(lamp.compare(scores)).split()


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda model: lamp.task("LaMP-9"), "unknown task 'LaMP-9'"),
        (lambda model: lamp.rank(DEV, TASK, "bm52"), "unknown retriever 'bm52': choose one of bm25"),
        (lambda model: lamp.rank(DEV, TASK, variant="bm25l"), "variant='bm25l': choose one of okapi, lucene"),
        (lambda model: lamp.load(MODEL, dtype="float16"), "dtype='float16': choose one of float32, bfloat16"),
        (lambda model: lamp.generate(model, [], decode="label"), "decode='label': choose one of beam, greedy, labels"),
        (lambda model: lamp.feedback(model, DEV, TASK, reward="bleu"), "reward='bleu': choose one of metric"),
        (
            lambda model: lamp.train_retriever("scratch", DEV, [], TASK, lamp.RetrieverTraining(method="KD")),
            "method='KD': choose one of kd, rl",
        ),
        (
            lambda model: lamp.finetune(
                MODEL, DEV, DEV, TASK, lamp.GeneratorTraining(learning=lamp.Learning(step_size="relativ"))
            ),
            "step_size='relativ': choose one of absolute, relative",
        ),
        (lambda model: lamp.adapters(model, DEV, TASK, lamp.AdapterTraining(shared="yes")), "shared='yes': choose one"),
        (lambda model: lamp.compare({}, against="one"), "against='one'"),
        (lambda model: lamp.rank(DEV[0], TASK), "questions: expected a list of Question, found one Question"),
        (lambda model: lamp.rank([asdict(DEV[0])], TASK), r"questions\[0\]: expected Question, found dict; `read_ques"),
        (lambda model: lamp.generate(model, ["a"]), r"prompts\[0\]: expected QuestionPrompt, found str"),
        (lambda model: lamp.generate(model, "a"), r"prompts\[0\]: expected QuestionPrompt, found str"),
        (lambda model: lamp.feedback(model, 3, TASK), "questions: expected a list of Question, found int"),
        (lambda model: lamp.adapters(model, [DEV], TASK), r"questions\[0\]: expected Question, found list"),
        (lambda model: lamp.finetune(model, DEV, ["a"], TASK), r"validation\[0\]: expected Question, found str"),
        (lambda model: lamp.read_questions([{"id": "1"}]), "the records, 0: 'input' must be a text"),
        (lambda model: lamp.read_questions([asdict(DEV[0])] * 2), "this id occurs twice"),
        (
            lambda model: lamp.score(TASK, {}, [lamp.read_questions([asdict(DEV[0]) | {"output": None}])[0]]),
            "question .* has no reference",
        ),
        (lambda model: lamp.finetune(MODEL, [], DEV, TASK), "the train questions: there are none"),
        (
            lambda model: lamp.generate(
                model,
                [
                    *lamp.prompts(DEV[:1], TASK, model.tokenizer),
                    *lamp.prompts(DEV[1:2], "LaMP-4", model.tokenizer, num_retrieved=0),
                ],
            ),
            "prompts of several tasks, LaMP-3, LaMP-4",
        ),
    ],
)
def test_invalid_arguments_are_an_error(act, words, model):
    with pytest.raises(LampError, match=words):
        act(model)


def test_rows_are_short_and_go_into_pandas(model):
    pandas = pytest.importorskip("pandas")
    ranked = lamp.rank(DEV, TASK)
    prompts = lamp.prompts(ranked, TASK, model.tokenizer, num_retrieved=2, max_length=192)
    answers = lamp.generate(model, prompts, decode="labels", batch_size=8)
    scores = lamp.score(TASK, answers, DEV)
    for rows in (ranked, prompts, answers, lamp.compare({"bm25": scores}), lamp.tasks()):
        frame = pandas.DataFrame(rows)
        assert len(frame) == len(rows)
        assert list(frame.columns) == list(asdict(rows[0]))
    assert pandas.DataFrame(scores.per_sample).loc[DEV[0].id, "MAE"] == scores.samples[DEV[0].id]
    assert type(ranked[:2]) is type(ranked)
    assert ranked[:2] == list(ranked)[:2]
    for rows in (ranked, prompts, answers):
        assert max(map(len, repr(rows).splitlines())) < 150
        assert repr(rows).splitlines()[-1] == f" ... {len(DEV)} rows]"


def test_rows_go_into_data_sets_of_hugging_face_and_back(model):
    datasets = pytest.importorskip("datasets")
    found = datasets.Dataset.from_list(lamp.rank(DEV, TASK).records())
    assert found.column_names == ["id", "input", "profile", "user_id", "output", "scores"]
    assert lamp.read_questions(found, TASK) == lamp.read_questions([asdict(one) for one in lamp.rank(DEV, TASK)], TASK)


def test_every_function_of_the_library_is_public():
    assert [name for name, _ in inspect.getmembers(api_training, inspect.isfunction) if name in FUNCTIONS] == [
        "adapters",
        "feedback",
        "finetune",
        "train_retriever",
    ]
