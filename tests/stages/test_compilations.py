"""Compilations of a stage: one per bucket shape; more questions, epochs or other texts add none.

Where all prompts are known, buckets are fitted to them; then further questions have the same lengths.

The tests count requests to the compiler, including those that the compilation cache on disk answers.
"""

import json
import random
import re
from collections import Counter
from contextlib import contextmanager

import jax
import pytest
from flax import nnx

from lamp_jax import cli
from lamp_jax.artifacts.selector import Candidate, CandidateSet, QuestionCandidates, write_candidates
from lamp_jax.data.files import Question
from lamp_jax.decoding.answering import answer
from lamp_jax.decoding.answers import Answerer
from lamp_jax.encoding import open_encoder
from lamp_jax.inputs.batches import choose_buckets, choose_text_buckets, fit_buckets
from lamp_jax.inputs.generator import make_prompts, prompt_examples
from lamp_jax.inputs.tokenizer import load_tokenizer, tokenize
from lamp_jax.models.families import load_generator
from lamp_jax.options import Answering, Devices, Prompting, Prompts
from lamp_jax.retrieval.dense import embed_all
from lamp_jax.sharding import make_mesh, model_options
from lamp_jax.tasks.catalog import find_task
from tests.goldens.cases import CASES

pytestmark = pytest.mark.slow

TASK = find_task("LaMP-4")
MODEL, ENCODER = CASES / "tiny" / "t5_ft", CASES / "tiny" / "bert"
WORDS = ["river", "stone", "cloud", "ember", "frost", "maple", "harbor", "lantern", "meadow", "violet"]
LENGTH = 128
BUCKETS = choose_buckets(LENGTH)
LENGTHS_OF_TARGETS = 3
"""Most lengths to which targets are padded."""
SHAPES_OF_MICROBATCHES = 6 * 2
"""Number of lengths of the longer side of adapters' examples times that of the shorter side."""
SHORT = ("--generation-max-length", 8, "--num-beams", 2)
ENCODER_SIZE = ("--dropout", 0, "--hidden-size", 16, "--intermediate-size", 32, "--num-layers", 1, "--num-heads", 2)


def lamp(*words) -> int:
    return cli.main([str(word) for word in words])


@contextmanager
def compilations():
    """Counter of the names of programs that are compiled within the `with` block."""
    found: Counter[str] = Counter()

    def listen(event: str, seconds: float, **facts) -> None:
        if "backend_compile" in event:
            found[re.sub(r"^jit[_(](.*?)\)?$", r"\1", str(facts["fun_name"]))] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def text(draw: random.Random, longest: int) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))


def make_questions(seed: int, count: int, *, longest_gold: int = 3) -> list[dict]:
    """Questions of many lengths with 1 to 4 items each."""
    draw = random.Random(seed)

    def make(number: int, longest: int) -> dict:
        def item(place: int) -> dict:
            found = {"text": text(draw, longest), "title": text(draw, 3), "date": "2010-01-01"}
            return {"id": f"{number}-{place}", **found}

        return {
            "id": f"{seed}-{number}",
            "input": TASK.template.format(text=text(draw, longest)),
            "profile": [item(place) for place in range(draw.randint(1, 4))],
            "output": text(draw, longest_gold),
        }

    return [make(number, draw.choice([1, 5, 25])) for number in range(count)]


def under_other_ids(records, *names):
    return [{**one, "id": f"{name}-{one['id']}"} for name in names for one in records]


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def questions_of(records):
    return [Question(one["id"], one["input"], tuple(one["profile"]), None, one["output"]) for one in records]


def assert_compiled_as_often(first: Counter, again: Counter) -> None:
    """The second run compiles only what it jits itself; other small operations were compiled in the first run."""
    assert not again - first


def test_compilations_are_counted():
    """Otherwise the tests of this file could not fail."""

    def brand_new(x):
        return x + 1

    with compilations() as found:
        jax.jit(brand_new)(jax.numpy.zeros(3))
    assert found["brand_new"] == 1
    with compilations() as found:
        jax.jit(brand_new)(jax.numpy.zeros(3))
    assert not found


@pytest.mark.parametrize("decode", ["beam", "labels"])
def test_more_questions_of_the_same_lengths_compile_nothing(decode):
    task = find_task("LaMP-2") if decode == "labels" else TASK
    tokenizer = load_tokenizer(MODEL)
    settings = Prompts("", "", "", "", prompting=Prompting(num_retrieved=1, max_length=LENGTH))

    def answer_questions(records):
        questions = questions_of(records)
        prompts = make_prompts(questions, TASK, tokenizer, settings, retriever="file")
        examples = prompt_examples(questions, prompts)
        with compilations() as found:
            answer(examples, answerer, params, batch_size=8, max_length=LENGTH)
        return found, fit_buckets((len(example.source) for example in examples), LENGTH)

    with jax.set_mesh(make_mesh()):
        graph, params = nnx.split(load_generator(str(MODEL), **model_options(Devices())))
        answerer = Answerer(graph, tokenizer, task, Answering(decode, num_beams=2, generation_max_length=8))
        records = make_questions(0, 48)
        cold, met = answer_questions(records)
        warm, met_again = answer_questions(under_other_ids(records, "more", "others"))
        others, met_by_others = answer_questions(make_questions(1, 59))
    assert met == met_again
    assert not others - Counter(decode=len({*met_by_others} - {*met}))
    assert 1 < cold["decode"] == len(met) <= len(BUCKETS)
    assert not warm


def feedback(folder, count, *more):
    """Feedback on the first questions of a list."""
    questions = write(folder / f"{count}.json", make_questions(2, 40, longest_gold=30)[:count])
    given = ("--task", "LaMP-4", "--merged", questions, "--model", MODEL, "--max-length", LENGTH, *SHORT)
    jax.clear_caches()  # of programs: a stage is a process of its own
    with compilations() as found:
        assert lamp("feedback", "items", *given, "--batch-size", 8, *more, "--output", folder / f"F{count}") == 0
    return found


@pytest.mark.parametrize(("reward", "program"), [("metric", "decode"), ("likelihood", "_measure")])
def test_feedback_on_more_items_compiles_nothing_more(reward, program, tmp_path):
    more = ("--reward", reward, *(("--generation-max-length", 64) if reward == "likelihood" else ()))
    first, again = (feedback(tmp_path, count, *more) for count in (30, 40))
    assert 1 < first[program] <= len(BUCKETS)
    assert_compiled_as_often(first, again)


def train(folder, name, *more):
    train, dev = (write(folder / f"{seed}.json", make_questions(seed, 36, longest_gold=12)) for seed in (3, 4))
    size = ("--dropout", 0, "--d-model", 16, "--d-ff", 32, "--num-heads", 2)
    size += ("--num-layers", 1, "--num-decoder-layers", 1)
    given = ("--task", "LaMP-4", "--train", train, "--validation", dev, "--model", "scratch", "--vocab-size", 300)
    learning = ("--batch-size", 8, "--max-length", LENGTH, "--num-retrieved", 2)
    answers = ("--generation-max-length", 16, "--num-beams", 2)
    with compilations() as found:
        assert lamp("train", *given, *size, *learning, *answers, *more, "--output", folder / name) == 0
    return found


def reported_shapes(capsys) -> int:
    return int(re.search(r"programs compiled: (\d+)", capsys.readouterr().out)[1])


def test_further_epochs_of_a_generator_and_their_evaluations_compile_nothing_more(tmp_path, capsys):
    first = train(tmp_path, "one", "--epochs", 1)
    assert 1 < first["update"] == reported_shapes(capsys) <= len(BUCKETS) * LENGTHS_OF_TARGETS
    again = train(tmp_path, "three", "--epochs", 3)
    assert again["update"] == reported_shapes(capsys)
    assert_compiled_as_often(first, again)


def train_adapters(folder, name, records, *more):
    """Trains adapters in the store of this name; every question belongs to another user."""
    questions = write(folder / f"{name}.json", records)
    given = ("--task", "LaMP-4", "--questions", questions, "--model", MODEL, "--max-length", 24, "--targets", "q")
    learning = ("--users-per-step", 8, "--tokens-per-device", 128, "--batch-size", 4, "--rank", 2, "--dropout", 0)
    with compilations() as found:
        assert lamp("train-adapters", *given, *learning, *more, "--output", folder / name) == 0
    return found


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """Folder with the `store` of a cohort of eight users, their questions, and the programs compiled by training."""
    folder = tmp_path_factory.mktemp("adapted")
    users = [one for one in make_questions(9, 40) if len(one["profile"]) == 4][:8]
    return folder, users, train_adapters(folder, "store", users, "--epochs", 1)


def test_further_cohorts_and_epochs_of_adapters_compile_only_new_shapes(adapted, tmp_path):
    """Except for new shapes of microbatches: the shape of a microbatch depends on the rows that it combines."""
    _, users, first = adapted
    again = train_adapters(tmp_path, "store", under_other_ids(users, "a", "b"), "--epochs", 2)
    assert all(1 < found["update"] <= SHAPES_OF_MICROBATCHES for found in (first, again))
    assert_compiled_as_often(first, again - Counter(update=SHAPES_OF_MICROBATCHES))


def test_answers_with_other_users_adapters_compile_nothing_more(adapted, tmp_path):
    folder, users, _ = adapted

    def generate(name, records):
        files = (
            "--questions",
            write(tmp_path / f"{name}.json", records),
            "--output",
            tmp_path / f"{name}.answers.json",
        )
        given = ("--task", "LaMP-4", "--model", MODEL, "--adapters", folder / "store", "--max-length", LENGTH)
        how = ("--num-retrieved", 0, "--batch-size", 8, "--decode", "greedy", "--generation-max-length", 8)
        with compilations() as found:
            assert lamp("generate", *files, *given, *how) == 0
        return found

    # The number of questions of each length fills complete batches.
    some = [*under_other_ids(users, *"abcdefg"), *users]
    first = generate("some", some)
    assert 1 <= first["decode"] <= len(BUCKETS)
    assert_compiled_as_often(first, generate("all", [*under_other_ids(some, "stranger", "other"), *some[::-1]]))


def train_retriever(folder, name, *more):
    questions = make_questions(5, 40)
    draw = random.Random(6)
    metrics = {
        f"{one['id']}-{item['id']}": {"rouge-1": draw.random(), "rouge-L": draw.random()}
        for one in questions
        for item in one["profile"]
    }
    given = ("--questions", write(folder / "q.json", questions), "--feedback", write(folder / "f.json", metrics))
    learning = ("--batch-size", 8, "--accumulation", 1, "--max-length", 32, "--held-out", 0.2, "--vocab-size", 250)
    words = ("--task", "LaMP-4", *given, "--encoder", "scratch", *ENCODER_SIZE, *learning, *more)
    with compilations() as found:
        assert lamp("train-retriever", *words, "--output", folder / name) == 0
    return found


@pytest.mark.parametrize("method", ["kd", "rl"])
def test_further_epochs_of_a_retriever_compile_nothing_more(method, tmp_path, capsys):
    first = train_retriever(tmp_path, "one", "--method", method, "--epochs", 1)
    assert 1 < first["update"] == reported_shapes(capsys) <= 2 * len(choose_text_buckets(32))  # 2 or 4 candidates
    again = train_retriever(tmp_path, "three", "--method", method, "--epochs", 3)
    assert again["update"] == reported_shapes(capsys)
    assert_compiled_as_often(first, again)


def make_candidate_set(seed: int, count: int) -> CandidateSet:
    draw = random.Random(seed)
    names = ("none", "bm25", "recency")

    def make(number: int, longest: int) -> QuestionCandidates:
        asked = names[: draw.randint(2, 3)]
        candidates = {name: Candidate(text(draw, longest), text(draw, 5), draw.random()) for name in asked}
        return QuestionCandidates(f"{seed}-{number}", "input", "gold", candidates)

    return CandidateSet(TASK, "rouge-1", names, [make(number, draw.choice([2, 12])) for number in range(count)])


def train_selector(folder, name, *more):
    for part, seed, count in (("train", 7, 36), ("dev", 8, 20)):
        write_candidates(folder / f"{part}.json", make_candidate_set(seed, count))
    given = ("--train", folder / "train.json", "--validation", folder / "dev.json", "--model", "scratch")
    learning = ("--batch-size", 8, "--accumulation", 1, "--max-length", 32, "--mode", "pre", "--vocab-size", 300)
    window = ("--attention-window", 8)
    with compilations() as found:
        words = (*given, *ENCODER_SIZE, *learning, *window, *more)
        assert lamp("train-selector", *words, "--output", folder / name) == 0
    return found


def test_further_epochs_of_a_selector_compile_nothing_more(tmp_path, capsys):
    first = train_selector(tmp_path, "one", "--epochs", 1)
    assert 1 < first["update"] == reported_shapes(capsys) <= 2 * len(choose_text_buckets(32))  # 2 or 3 candidates
    again = train_selector(tmp_path, "three", "--epochs", 3)
    assert again["update"] == reported_shapes(capsys)
    assert_compiled_as_often(first, again)


def test_other_texts_of_the_same_lengths_compile_nothing():
    tokenizer = load_tokenizer(ENCODER)

    def texts(seed, count):
        draw = random.Random(seed)
        return [text(draw, 70) for _ in range(count)]

    def lengths(texts):
        return {-(-len(row) // 32) for row in tokenize(texts, tokenizer, max_length=128)}

    with jax.set_mesh(make_mesh()):
        embed = open_encoder(str(ENCODER), Devices(), max_length=128, batch_tokens=2048).documents
        with compilations() as cold:
            embed_all(first := texts(0, 150), embed)
        with compilations() as warm:
            embed_all(other := texts(1, 201), embed)
    assert lengths(first) == lengths(other)
    assert 2 < cold["embed"] <= len(lengths(first))
    assert not warm
