"""`lamp train-adapters`, `generate --adapters`, `export-adapter` and `import-adapter` as commands."""

import contextlib
import io
import json
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lamp_jax import cli
from lamp_jax.artifacts import old_store
from lamp_jax.artifacts.adapters import EVERYBODY, FORM, AdapterEntry, AdapterStore, create_store, open_store
from lamp_jax.config import Lora
from lamp_jax.data.files import read_outputs
from lamp_jax.models.lora import draw_adapter
from lamp_jax.models.peft import WEIGHTS
from lamp_jax.stages import generate as stages_generate
from lamp_jax.training import adapters as adapting
from lamp_jax.training.loop import RUN_FILES
from lamp_jax.training.store import FAILED, make_form
from tests.bucket import let_orbax_write, url

MODEL = str(Path(__file__).parents[1] / "cases" / "tiny" / "t5_ft")
QUESTIONS, TRAINED, WITHOUT = 14, 11, ("u12", "u13")
FIRST_COHORT, UPDATES = 8, 2
"""Size of the first cohort, and the number of updates of each of its users."""
STOPS = (-3, -2, -1, 0, 1, 2, 4)
"""Numbers of microbatches after the first cohort at which a training is stopped."""
TARGETS = ("q", "v")


def lamp(*words) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    """Merged questions: two of one user (whose profile they have in two orders), and two of users without items."""
    folder = tmp_path_factory.mktemp("questions")
    size = ("--questions", 1, "--dev-questions", QUESTIONS, "--profile-sizes", 5, 6)
    assert lamp("synth", "--task", "LaMP-3", *size, "--output", folder / "raw") == 0
    files = ("--questions", folder / "raw" / "dev_questions.json", "--outputs", folder / "raw" / "dev_outputs.json")
    assert lamp("merge", *files, "--output", folder / "merged.json") == 0
    records = json.loads((folder / "merged.json").read_text())
    for number, record in enumerate(records):
        record["user_id"] = f"u{number}"
        if number < FIRST_COHORT:
            record["profile"] = record["profile"][: 2 + number % 3]
    records[11] |= {"user_id": "u10", "profile": records[10]["profile"][::-1]}
    for number in (12, 13):
        records[number]["profile"] = []
    return write(folder / "questions.json", records)


def write(path: Path, records) -> Path:
    path.write_text(json.dumps(records))
    return path


def train_words(questions, output, *more) -> tuple:
    """Command line of a training of two cohorts, with two and with four updates."""
    size = ("--users-per-step", FIRST_COHORT, "--tokens-per-device", 64, "--max-length", 32, "--target-length", 8)
    learning = ("--epochs", 2, "--batch-size", 4, "--learning-rate", 0.05)
    learning += ("--rank", 2, "--alpha", 8, "--targets", *TARGETS)
    files = ("--task", "LaMP-3", "--questions", questions, "--model", MODEL, "--output", output)
    return ("train-adapters", *files, *size, *learning, *more)


def generate_words(questions, output, *more) -> tuple:
    size = ("--batch-size", 8, "--max-length", 192, "--num-beams", 2, "--generation-max-length", 4)
    files = ("--task", "LaMP-3", "--questions", questions, "--output", output)
    return ("generate", *files, "--model", MODEL, *size, "--num-retrieved", 0, "--decode", "labels", *more)


def answers(*given) -> dict[str, str]:
    words = generate_words(*given)
    assert lamp(*words) == 0
    return read_outputs(words[words.index("--output") + 1]).by_id


@pytest.fixture(scope="module")
def uninterrupted(questions, tmp_path_factory) -> tuple[Path, int]:
    """Store of an uninterrupted training, not to be changed, and the number of microbatches of its first cohort."""
    output = tmp_path_factory.mktemp("whole") / "store"
    compute, places = adapting.AdapterCohorts.compute, []

    def count(self, state, block, part, where):
        places.append(where)
        return compute(self, state, block, part, where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapting.AdapterCohorts, "compute", count)
        assert lamp(*train_words(questions, output)) == 0
    assert places == sorted(set(places))
    return output, sum(block == 0 for block, _, _ in places)


@pytest.fixture(scope="module")
def trained_store(uninterrupted) -> Path:
    return uninterrupted[0]


@pytest.fixture(scope="module")
def microbatches_of_the_first_cohort(uninterrupted) -> int:
    return uninterrupted[1]


@pytest.fixture(scope="module")
def killed_store(questions, tmp_path_factory) -> Path:
    """Store of a training that was killed when the first cohort's adapters had been appended. Not to be changed."""
    output = tmp_path_factory.mktemp("killed") / "store"
    with pytest.MonkeyPatch.context() as patch:
        kill_after_append(patch, train_words(questions, output), 1)
    return output


@pytest.fixture(scope="module")
def stopped_stores(questions, microbatches_of_the_first_cohort, tmp_path_factory) -> dict[int, Path]:
    """Copies of a store that was stopped and resumed several times, by microbatches after the first cohort."""
    folder, copies, made = tmp_path_factory.mktemp("stopped"), {}, -microbatches_of_the_first_cohort
    for place in STOPS:
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as printed:
            stop_after(patch, train_words(questions, folder / "store"), place - made)
        assert "run the same command again" in printed.getvalue()
        copies[place], made = Path(shutil.copytree(folder / "store", folder / f"at {place}")), place
    return copies


@pytest.fixture
def store_copy(trained_store, tmp_path) -> Path:
    return Path(shutil.copytree(trained_store, tmp_path / "store"))


@pytest.fixture(scope="module")
def another_base(tmp_path_factory) -> Path:
    """A base model of the same form with other weights."""
    path = tmp_path_factory.mktemp("base") / "model"
    shutil.copytree(MODEL, path)
    tensors = load_file(path / "model.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 0.5}, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_a_store_has_an_adapter_of_every_user_with_items(questions, trained_store):
    store = open_store(trained_store)
    profiles = {one["user_id"]: one["profile"] for one in json.loads(questions.read_text())}
    assert {user: one.items for user, one in store.entries.items()} == {
        user: len(items) for user, items in profiles.items() if items
    }
    assert all(one.updates == 2 * -(-one.items // 4) for one in store.entries.values())
    assert [one.updates for one in store.entries.values()][:FIRST_COHORT] == [UPDATES] * FIRST_COHORT
    assert all(one.loss is not None and one.loss > 0 for one in store.entries.values())
    record = json.loads((trained_store / "run.json").read_text())
    assert record["finished"]
    assert (record["users"], record["users_without_items"]) == (TRAINED, len(WITHOUT))
    assert record["items"] == sum(len(items) for items in profiles.values())
    assert all(
        0 < json.loads(line)["padding"] < 1 for line in (trained_store / "metrics.jsonl").read_text().splitlines()
    )
    assert not (trained_store / "checkpoints").exists()


@pytest.mark.parametrize(("decode", "items"), [("beam", 2), ("greedy", 0), ("labels", 0), ("labels", 2)])
def test_every_question_is_answered_with_its_users_adapter(questions, trained_store, tmp_path, capsys, decode, items):
    how = ("--decode", decode, "--num-retrieved", items)
    base = answers(questions, tmp_path / "base.json", *how)
    capsys.readouterr()
    own = answers(questions, tmp_path / "own.json", *how, "--adapters", trained_store)
    assert "12 of 14 questions have an adapter; the model alone answers the others" in capsys.readouterr().out
    record = json.loads((tmp_path / "own.json.run.json").read_text())
    assert (record["adapted"], record["bare_inputs"]) == (12, 0)
    users = {one["id"]: one["user_id"] for one in json.loads(questions.read_text())}
    assert {own[key] == base[key] for key, user in users.items() if user in WITHOUT} == {True}
    assert sum(own[key] != base[key] for key in own) > 5
    assert "adapted" not in json.loads((tmp_path / "base.json.run.json").read_text())


def test_the_number_of_questions_with_an_adapter_is_reported_before_decoding(
    questions, trained_store, tmp_path, monkeypatch, capsys
):
    def stop(*given, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages_generate, "make_prompts", stop)
    assert lamp(*generate_words(questions, tmp_path / "own.json", "--adapters", trained_store)) == 130
    assert "12 of 14 questions have an adapter; the model alone answers the others" in capsys.readouterr().out


def test_a_store_of_other_users_is_refused_before_the_model_is_loaded(
    questions, trained_store, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(stages_generate, "load_generator", None)
    records = json.loads(questions.read_text())
    for number, record in enumerate(records):
        record["user_id"] = f"stranger-{number}"
    strangers = write(tmp_path / "strangers.json", records)
    assert lamp(*generate_words(strangers, tmp_path / "own.json", "--adapters", trained_store)) == 1
    error = capsys.readouterr().err
    known = "adapters of 11 users (u0, u3, u6, u1, u4, ...)"
    assert f"{trained_store}: has {known}, but of none of the 14 users (stranger-0, " in error
    assert f"of {strangers}; give the store of these users, or leave --adapters out" in error
    assert [path.name for path in tmp_path.iterdir()] == ["strangers.json"]


def test_a_store_without_users_is_refused_too(questions, trained_store, tmp_path, capsys):
    create_store(tmp_path / "empty", open_store(trained_store).form).close()
    assert lamp(*generate_words(questions, tmp_path / "own.json", "--adapters", tmp_path / "empty")) == 1
    assert (
        f"{tmp_path / 'empty'}: has adapters of 0 users, but of none of the 13 users (u0, " in capsys.readouterr().err
    )


def test_answers_do_not_depend_on_the_other_questions_of_a_batch(questions, trained_store, tmp_path):
    together = answers(questions, tmp_path / "together.json", "--adapters", trained_store)
    backwards = write(tmp_path / "backwards.json", json.loads(questions.read_text())[::-1])
    assert answers(backwards, tmp_path / "other.json", "--adapters", trained_store) == together


def test_the_same_command_again_does_nothing_and_another_is_refused(questions, trained_store, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in trained_store.iterdir()}
    assert lamp(*train_words(questions, trained_store)) == 0
    assert "already trained" in capsys.readouterr().out
    assert lamp(*train_words(questions, trained_store, "--rank", 3)) == 1
    assert "other settings or inputs" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in trained_store.iterdir()} == before


def store_files(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / FORM, *sorted(store.glob("*.safetensors")))}


def assert_same_store(found: Path, expected: Path) -> None:
    names = [name for name, content in store_files(found).items() if store_files(expected).get(name) != content]
    assert not names
    assert store_files(found).keys() == store_files(expected).keys()
    assert json.loads((found / "run.json").read_text())["finished"]
    assert not (found / "checkpoints").exists()


def kill_after_append(monkeypatch, words, number: int, size: int = FIRST_COHORT) -> None:
    append, made = AdapterStore.append, []

    def append_and_die(self, entries, adapters):
        append(self, entries, adapters)
        made.append(len(entries))
        if len(made) == number:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AdapterStore, "append", append_and_die)
        assert lamp(*words) == 130
    assert made[0] == size


def truncate(kind: str, size: int) -> Callable[[Path], None]:
    """Function that truncates the first file of a kind by `size` bytes."""

    def work(store: Path) -> None:
        path = min(store.glob(f"{kind}-*.safetensors"))
        path.write_bytes(path.read_bytes()[:-size])

    return work


def leave_files(store: Path) -> None:
    """Adds files as left by a killed append before they are listed."""
    shard = min(store.glob("adapters-*.safetensors")).read_bytes()
    (store / "adapters-000000000008-000000000011.safetensors").write_bytes(shard)
    (store / ".index-000000000008-000000000011.safetensors.1.unfinished").write_bytes(shard[:9])
    (store / ".adapters.lamp.lock").touch()


@pytest.mark.slow
@pytest.mark.parametrize("leave", [lambda store: None, leave_files], ids=["nothing", "files"])
def test_a_run_killed_during_an_append_resumes_to_the_same_bytes(
    questions, trained_store, killed_store, tmp_path, leave
):
    output = Path(shutil.copytree(killed_store, tmp_path / "store"))
    leave(output)
    assert not json.loads((output / "run.json").read_text())["finished"]
    assert lamp(*train_words(questions, output)) == 0
    assert_same_store(output, trained_store)
    assert not list(output.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapters", "index"])
def test_a_truncated_store_is_unchanged_until_force_makes_it_again(
    questions, trained_store, killed_store, tmp_path, capsys, kind
):
    output = Path(shutil.copytree(killed_store, tmp_path / "store"))
    truncate(kind, 9)(output)
    before = store_files(output)
    assert lamp(*train_words(questions, output)) == 1
    assert re.search(rf"{output}/{kind}-.*: has \d+ of \d+ bytes; copy the store again", capsys.readouterr().err)
    assert store_files(output) == before
    assert lamp(*train_words(questions, output, "--force")) == 0
    assert_same_store(output, trained_store)


def as_old_store(store: Path) -> None:
    """Converts a store to the format of the first version."""
    opened = open_store(store)
    users = list(opened.entries)
    adapters = opened.read(users)
    numbers = np.concatenate([values.reshape(len(users), -1) for values in adapters.values()], axis=1)
    old_store.append_users(store, list(opened.entries.values()), numbers)
    form = json.loads((store / FORM).read_text())
    (store / FORM).write_text(json.dumps({name: form[name] for name in form if name not in OURS}))
    record = json.loads((store / "run.json").read_text())
    (store / "run.json").write_text(json.dumps(record | {"makes": [FORM, *old_store.FILES, *RUN_FILES]}))
    for path in store.glob("*.safetensors"):
        path.unlink()


OURS = ("version", "segments", "crc32")


def test_an_old_store_answers_once_it_is_converted(questions, trained_store, store_copy, tmp_path, capsys):
    as_old_store(store_copy)
    words = generate_words(questions, tmp_path / "own.json", "--adapters", store_copy)
    assert lamp(*words) == 1
    assert f"lamp convert-store --store {store_copy} --output NEW" in capsys.readouterr().err
    assert lamp("export-adapter", store_copy, "--user", "u3", "--output", tmp_path / "peft") == 1
    assert f"lamp convert-store --store {store_copy} --output NEW" in capsys.readouterr().err
    assert lamp("convert-store", "--store", store_copy, "--output", tmp_path / "new") == 0
    capsys.readouterr()
    found = answers(questions, tmp_path / "own.json", "--adapters", tmp_path / "new")
    assert found == answers(questions, tmp_path / "whole.json", "--adapters", trained_store)


@pytest.mark.parametrize("old", [False, True])
def test_force_removes_no_imported_adapter(questions, trained_store, store_copy, tmp_path, capsys, old):
    with contextlib.closing(create_store(store_copy, open_store(trained_store).form)) as store:
        store.append([AdapterEntry("imported", 1, 0, None)], open_store(trained_store).read(["u3"]))
    if old:
        as_old_store(store_copy)
    assert lamp(*train_words(questions, store_copy, "--force")) == 1
    assert "--force would remove adapters that were imported, those of 1 users (imported)" in capsys.readouterr().err


def test_a_run_killed_after_the_last_cohort_trains_nothing_more(
    questions, trained_store, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "store"
    kill_after_append(monkeypatch, train_words(questions, output), 2)
    assert lamp(*train_words(questions, output)) == 0
    assert_same_store(output, trained_store)
    assert "adapters of" in capsys.readouterr().out


def stop_after(monkeypatch, words, *steps: int) -> None:
    """Runs a command that is asked to stop at exactly these steps and not later, as in a process group."""

    @contextlib.contextmanager
    def watch():
        yield lambda step: step in steps

    with monkeypatch.context() as patch:
        patch.setattr(adapting, "watch", watch)
        assert lamp(*words) == 0


def test_a_repeatedly_stopped_run_resumes_to_the_same_bytes(questions, trained_store, stopped_stores, tmp_path):
    users = {place: len(open_store(store).entries) for place, store in stopped_stores.items()}
    assert users == {place: 0 if place < 0 else FIRST_COHORT for place in STOPS}
    output = Path(shutil.copytree(stopped_stores[STOPS[-1]], tmp_path / "store"))
    assert lamp(*train_words(questions, output)) == 0
    assert_same_store(output, trained_store)


@pytest.mark.slow
def test_a_run_with_a_store_older_than_its_checkpoint_resumes_to_the_same_bytes(
    questions, trained_store, stopped_stores, tmp_path, monkeypatch
):
    """This happens at a URL, where a large store is not sent before every checkpoint."""
    output = Path(shutil.copytree(stopped_stores[2], tmp_path / "store"))
    assert len(open_store(output).entries) == FIRST_COHORT
    form = open_store(output).form
    for path in (output / FORM, *output.glob("*.safetensors")):
        path.unlink()
    create_store(output, form).close()
    stop_after(monkeypatch, train_words(questions, output), 1)
    assert not open_store(output).entries
    assert lamp(*train_words(questions, output)) == 0
    assert_same_store(output, trained_store)


@pytest.mark.slow
def test_users_whose_training_fails_have_no_adapter_and_others_do(
    questions, trained_store, tmp_path, monkeypatch, capsys
):
    finish, output = adapting.AdapterCohorts.finish, tmp_path / "store"

    def finish_without_two(self, state, block):
        learned, users = finish(self, state, block), [one.user for one in block.users]
        if "u3" in users:
            learned.losses[users.index("u3")] = np.nan
            for values in learned.adapters.values():
                values[users.index("u5")] = 0
        return learned

    monkeypatch.setattr(adapting.AdapterCohorts, "finish", finish_without_two)
    kill_after_append(monkeypatch, train_words(questions, output), 1, FIRST_COHORT - 2)
    assert not (output / FAILED).read_text()  # so the cohort is trained again
    kill_after_append(monkeypatch, train_words(questions, output), 2, 0)
    monkeypatch.setattr(adapting.AdapterCohorts, "finish", finish)
    assert lamp(*train_words(questions, output)) == 0
    assert "training failed for 2 users, who have no adapter (u3, u5; " in capsys.readouterr().out
    found, expected = open_store(output), open_store(trained_store)
    assert expected.entries.keys() - found.entries.keys() == {"u3", "u5"}
    for user in found.entries:
        for name, values in expected.read([user]).items():
            np.testing.assert_array_equal(found.read([user])[name], values)
    noted = [json.loads(line) for line in (output / FAILED).read_text().splitlines()]
    assert [(one["user"], one["why"].split(":")[0]) for one in noted] == [("u3", "diverged"), ("u5", "has no effect")]
    record = json.loads((output / "run.json").read_text())
    assert (record["users"], record["users_failed"]) == (TRAINED - 2, 2)


@pytest.mark.slow
def test_a_training_in_which_all_users_diverge_is_an_error(questions, tmp_path, capsys):
    words = train_words(questions, tmp_path / "store", "--learning-rate", 1e30)
    for _ in range(2):
        assert lamp(*words) == 1
        error = capsys.readouterr().err
        assert f"{tmp_path / 'store' / FAILED}: training failed for every user, first for 'u" in error
        assert "diverged; try a lower --learning-rate" in error


@pytest.mark.slow
@pytest.mark.parametrize("after_cohort", [-1, 2])
def test_users_keep_their_adapters_when_a_run_resumes_on_another_mesh(
    questions, trained_store, stopped_stores, tmp_path, capsys, after_cohort
):
    """The user of an adapter is identified by its initial values, with which it remains correlated.

    The second cohort has fewer users than devices.
    """
    store = Path(shutil.copytree(stopped_stores[after_cohort], tmp_path / "store"))
    assert lamp(*train_words(questions, store, "--model-parallel", 2)) == 0
    assert f"resuming cohort {1 if after_cohort < 0 else 2} of 2" in capsys.readouterr().out
    found, expected = open_store(store), open_store(trained_store)
    assert list(found.entries) == list(expected.entries)
    for one, other in zip(found.entries.values(), expected.entries.values(), strict=True):
        assert (one.items, one.updates) == (other.items, other.updates)
    first = {user: draw_adapter(first_values(0, user), found.form.shapes) for user in found.entries}
    for name, values in found.read(list(first)).items():
        if name.endswith(".down"):
            alike = [[np.vdot(one, other[name]) for other in first.values()] for one in values]
            assert np.argmax(alike, axis=1).tolist() == list(range(TRAINED)), name


def first_values(seed: int, user: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(user.encode())])


@pytest.mark.parametrize("shared", [pytest.param("profiles", marks=pytest.mark.slow), "questions"])
def test_a_shared_adapter_answers_all_questions(questions, tmp_path, monkeypatch, capsys, shared):
    """That of profiles after its training has resumed on another mesh."""
    records = json.loads(questions.read_text())
    for record in records:
        record["output"] = "5"
        for item in record["profile"]:
            item["score"] = "5"
    path = write(tmp_path / "five.json", records)
    words, resumed = train_words(path, tmp_path / "store", "--shared", shared, "--epochs", 8), ()
    if shared == "profiles":
        stop_after(monkeypatch, words, 12)
        resumed = ("--model-parallel", 2)
        assert not open_store(tmp_path / "store").entries
    assert lamp(*words, *resumed) == 0
    (entry,) = open_store(tmp_path / "store").entries.values()
    profiles = {one["user_id"]: one["profile"] for one in records}
    assert entry.user == EVERYBODY
    assert entry.items == (QUESTIONS if shared == "questions" else sum(map(len, profiles.values())))
    assert set(answers(path, tmp_path / "base.json").values()) != {"5"}
    capsys.readouterr()
    assert set(answers(path, tmp_path / "all.json", "--adapters", tmp_path / "store").values()) == {"5"}
    assert "14 of 14 questions have an adapter" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [("--storage", "bfloat16"), ("--storage", "int8", "--keep", "bfloat16")],
    ids=" ".join,
)
def test_adapters_work_with_every_storage_and_type(questions, trained_store, tmp_path, more):
    assert lamp(*train_words(questions, tmp_path / "store", *more)) == 0
    store, expected = open_store(tmp_path / "store"), open_store(trained_store)
    assert store.entries.keys() == expected.entries.keys()
    if "--keep" in more:
        assert store.form.bytes_per_user * 2 == expected.form.bytes_per_user
    storage = more[:2]
    found = answers(questions, tmp_path / "own.json", "--adapters", tmp_path / "store", *storage)
    assert found != answers(questions, tmp_path / "base.json", *storage)


@pytest.mark.parametrize("kind", ["adapters", "index"])
def test_a_truncated_store_is_refused(questions, store_copy, tmp_path, capsys, kind):
    truncate(kind, 9)(store_copy)
    assert lamp(*generate_words(questions, tmp_path / "own.json", "--adapters", store_copy)) == 1
    assert re.search(rf"{store_copy}/{kind}-.*: has \d+ of \d+ bytes; copy the store again", capsys.readouterr().err)
    assert not (tmp_path / "own.json").exists()


def test_a_finished_store_without_some_users_is_refused(questions, store_copy, tmp_path, capsys):
    form = open_store(store_copy).form
    for path in (store_copy / FORM, *store_copy.glob("*.safetensors")):
        path.unlink()
    create_store(store_copy, form).close()
    assert lamp(*generate_words(questions, tmp_path / "own.json", "--adapters", store_copy)) == 1
    assert "its training finished with adapters of 11 users, but it has adapters of 0" in capsys.readouterr().err
    assert not (tmp_path / "own.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda form: form["shapes"].update({"x.up": form["shapes"].popitem()[1]}), "none in the store"),
        (lambda form: form.update(targets=["key"]), "--targets key: no such projections"),
        (lambda form: form.update(rank=form["rank"] + 1), "rank|shape"),
        (lambda form: form.update(alpha=float("nan")), "'alpha' cannot be nan"),
        (lambda form: form.update(rank=0), "'rank' cannot be 0"),
    ],
)
def test_a_form_that_does_not_match_the_model_is_refused(questions, store_copy, tmp_path, capsys, change, message):
    form = json.loads((store_copy / FORM).read_text())
    change(form)
    (store_copy / FORM).write_text(json.dumps(form))
    assert lamp(*generate_words(questions, tmp_path / "own.json", "--adapters", store_copy)) == 1
    assert re.search(rf"{store_copy}.*({message})", capsys.readouterr().err)
    assert not (tmp_path / "own.json").exists()


@pytest.mark.slow
def test_an_unfinished_store_answers_for_users_of_complete_cohorts(
    questions, trained_store, killed_store, tmp_path, capsys
):
    store = killed_store
    found = answers(questions, tmp_path / "own.json", "--adapters", store)
    assert f"{store}: its training is not finished; adapters of {FIRST_COHORT} users so far" in capsys.readouterr().out
    users = {one["id"]: one["user_id"] for one in json.loads(questions.read_text())}
    done = open_store(store).known(list(users.values()))
    assert len(done) == FIRST_COHORT
    base = answers(questions, tmp_path / "base.json")
    expected = answers(questions, tmp_path / "whole.json", "--adapters", trained_store)
    assert found == {key: (expected if users[key] in done else base)[key] for key in users}


@pytest.mark.slow
def test_a_run_at_a_url_stores_adapters_and_no_checkpoints_there(
    questions, trained_store, microbatches_of_the_first_cohort, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "bucket").mkdir()
    let_orbax_write(monkeypatch)
    words = train_words(questions, url(tmp_path / "bucket" / "store"))
    stop_after(monkeypatch, words, microbatches_of_the_first_cohort + 2)
    assert (tmp_path / "bucket" / "store" / "checkpoints").exists()
    shutil.rmtree(tmp_path / "cache")
    assert lamp(*words) == 0
    assert_same_store(tmp_path / "bucket" / "store", trained_store)


def export(store, folder, *more, user="u3") -> Path:
    assert lamp("export-adapter", store, "--user", user, "--output", folder / "peft", *more) == 0
    return folder / "peft"


def import_words(directory, store, *more, user="u3", model=MODEL) -> tuple:
    return ("import-adapter", directory, "--store", store, "--user", user, "--model", model, *more)


def test_an_exported_and_imported_adapter_is_unchanged(questions, trained_store, tmp_path, capsys):
    directory = export(trained_store, tmp_path)
    assert lamp("export-adapter", trained_store, "--user", "u3", "--output", directory) == 0
    assert "already exported" in capsys.readouterr().out
    assert lamp(*import_words(directory, tmp_path / "new", "--items", 5)) == 0
    assert lamp(*import_words(directory, tmp_path / "new", user="u12")) == 0
    new, old = open_store(tmp_path / "new"), open_store(trained_store)
    assert new.form == old.form
    assert {user: (one.items, one.loss) for user, one in new.entries.items()} == {"u3": (5, None), "u12": (0, None)}
    for name, values in old.read(["u3"]).items():
        np.testing.assert_array_equal(new.read(["u12"])[name], values)
        np.testing.assert_array_equal(new.read(["u3"])[name], values)
    found = answers(questions, tmp_path / "new.json", "--adapters", tmp_path / "new")
    expected = answers(questions, tmp_path / "old.json", "--adapters", trained_store)
    keys = [one["id"] for one in json.loads(questions.read_text()) if one["user_id"] == "u3"]
    assert [found[key] for key in keys] == [expected[key] for key in keys]


def test_a_store_names_its_base_by_url_for_other_machines(trained_store, tmp_path, monkeypatch):
    directory, base = export(trained_store, tmp_path), tmp_path / "base"
    shutil.copytree(MODEL, base)
    before = {path: path.read_bytes() for path in [*base.iterdir(), *directory.iterdir()]}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    assert lamp(*import_words(url(directory), url(tmp_path / "new"), model=url(base))) == 0
    assert open_store(tmp_path / "new").form.base_name == url(base)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    assert lamp("export-adapter", url(tmp_path / "new"), "--user", "u3", "--output", url(tmp_path / "again")) == 0
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["base_model_name_or_path"] == url(base)
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (directory / WEIGHTS).read_bytes()
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_an_import_keeps_the_type_of_the_store(trained_store, tmp_path, capsys, kept):
    directory = export(trained_store, tmp_path)
    assert lamp(*import_words(directory, tmp_path / "new", "--keep", kept)) == 0
    assert lamp(*import_words(directory, tmp_path / "new", user="other")) == 0
    assert open_store(tmp_path / "new").form.dtype == kept
    found = open_store(tmp_path / "new").read(["u3", "other"])
    assert all(np.array_equal(*values) for values in found.values())
    other = {"float32": "bfloat16", "bfloat16": "float32"}[kept]
    assert lamp(*import_words(directory, tmp_path / "new", "--keep", other, user="third")) == 1
    assert f"dtype {kept} in the store, {other} requested" in capsys.readouterr().err


def test_an_export_of_another_store_at_the_same_path_is_not_skipped(trained_store, store_copy, tmp_path):
    directory = export(store_copy, tmp_path, user="u3")
    shutil.rmtree(store_copy)
    adapter = {name: 2 * values for name, values in open_store(trained_store).read(["u3"]).items()}
    with contextlib.closing(create_store(store_copy, open_store(trained_store).form)) as store:
        store.append([open_store(trained_store).entries["u3"]], adapter)
    before = (directory / WEIGHTS).read_bytes()
    words = ("export-adapter", store_copy, "--user", "u3", "--output", directory)
    assert lamp(*words) == 1 or (directory / WEIGHTS).read_bytes() != before


def test_an_import_of_an_adapter_without_effect_makes_no_store(trained_store, tmp_path, capsys):
    directory = export(trained_store, tmp_path)
    tensors = load_file(directory / WEIGHTS)
    save_file({name: 0 * values for name, values in tensors.items()}, directory / WEIGHTS)
    assert lamp(*import_words(directory, tmp_path / "new")) == 1
    assert "has no effect" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--rank", 0), "--rank 0: must be from 1 to 64"),
        (("--rank", 65), "--rank 65: must be from 1 to 64, the narrowest side"),
        (
            ("--targets", "q", "query"),
            "--targets query: no such projections in this model; choose from k, o, q, v, wi_0",
        ),
        (("--users-per-step", 12), "--users-per-step 12 does not divide over 8 data shards; use 8 or 16"),
        (("--users-per-step", 0), "--users-per-step 0: must be 1 or more"),
        (("--tokens-per-device", 0), "--tokens-per-device 0: must be 1 or more"),
        (("--epochs", 0), "--epochs 0.0: must be more than 0"),
        (("--batch-size", 0), "--batch-size 0"),
        (("--max-length", 0), "--max-length 0: must be 2 or more"),
        (("--dropout", 1), "--dropout 1"),
    ],
    ids=lambda one: " ".join(map(str, one)) if isinstance(one, tuple) else "",
)
def test_invalid_numbers_are_named_before_writing(questions, tmp_path, capsys, more, message):
    assert lamp(*train_words(questions, tmp_path / "store", *more)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "store").exists()


def other_profile(records):
    records[11]["profile"] = records[9]["profile"]


def no_profiles(records):
    for record in records:
        record["profile"] = []


def reserved_user(records):
    records[2]["user_id"] = EVERYBODY


def no_gold(records):
    del records[3]["output"]


@pytest.mark.parametrize(
    ("spoil", "more", "message"),
    [
        (other_profile, (), "user 'u10': the profiles of the questions {10} and {11} differ; `--profiles first`"),
        (no_profiles, (), "no user has a profile item, so there is nothing to train on"),
        (no_gold, ("--shared", "questions"), "{3}"),
        (
            reserved_user,
            (),
            "user 'everybody' (question {2}): this id is reserved for the adapter of all users without",
        ),
    ],
)
def test_questions_without_training_examples_are_named(questions, tmp_path, capsys, spoil, more, message):
    records = json.loads(questions.read_text())
    spoil(records)
    path = write(tmp_path / "spoiled.json", records)
    assert lamp(*train_words(path, tmp_path / "store", *more)) == 1
    error = capsys.readouterr().err
    assert message.format(*(repr(record["id"]) for record in records)) in error
    assert str(path) in error
    assert not (tmp_path / "store").exists()


def test_profiles_union_joins_two_profiles_and_users_without_items_are_reported(questions, tmp_path, capsys):
    records = json.loads(questions.read_text())
    other_profile(records)
    path = write(tmp_path / "spoiled.json", records[9:])
    assert lamp(*train_words(path, tmp_path / "store", "--profiles", "union")) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'store'}: adapters of 2 users" in printed
    assert "2 users have no profile items, and so no adapter" in printed
    sizes = [len(records[number]["profile"]) for number in (10, 11)]
    assert open_store(tmp_path / "store").entries["u10"].items == sum(sizes)


@pytest.mark.slow
def test_an_import_is_refused_until_the_training_command_ends(
    questions, trained_store, store_copy, tmp_path, monkeypatch, capsys
):
    directory, output, printed = export(trained_store, tmp_path), tmp_path / "new", []
    append = AdapterStore.append

    def append_during_other_commands(self, entries, adapters):
        assert lamp(*import_words(directory, output, user="other")) == 1
        assert lamp(*train_words(questions, output, "--force")) == 1
        printed.append(capsys.readouterr().err)
        append(self, entries, adapters)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterStore, "append", append_during_other_commands)
        assert lamp(*train_words(questions, output)) == 0
    assert all(
        f"{output}: another lamp command is writing to it; wait until that command ends" in one for one in printed
    )
    assert {one.count("is writing to it") for one in printed} == {2}
    assert_same_store(output, trained_store)
    assert lamp(*import_words(directory, output, user="other")) == 0


def test_a_store_of_another_base_is_refused(questions, trained_store, another_base, tmp_path, capsys):
    words = generate_words(questions, tmp_path / "p.json", "--adapters", trained_store, "--model", another_base)
    assert lamp(*words) == 1
    error = capsys.readouterr().err
    assert f"{trained_store}: its base model is {MODEL}, not {another_base} (their weights differ)" in error
    assert "give the model that it was made with, or another store" in error
    assert not list(tmp_path.iterdir())


def test_a_missing_store_is_named(questions, tmp_path, capsys):
    assert lamp(*generate_words(questions, tmp_path / "p.json", "--adapters", tmp_path / "none")) == 1
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert lamp("export-adapter", tmp_path / "none", "--user", "u3", "--output", tmp_path / "peft") == 1
    assert f"{tmp_path / 'none' / FORM}: no such file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_impossible_export_is_a_named_error(trained_store, another_base, tmp_path, capsys):
    words = ("export-adapter", trained_store, "--output", tmp_path / "peft")
    assert lamp(*words, "--user", "u12") == 1
    error = capsys.readouterr().err
    assert f"{trained_store}: no adapters for" in error
    assert "u12" in error
    assert lamp(*words, "--user", "u3", "--model", another_base) == 1
    assert "(their weights differ)" in capsys.readouterr().err
    assert not (tmp_path / "peft").exists()


def test_a_failed_import_leaves_a_store_unchanged(trained_store, store_copy, another_base, tmp_path, capsys):
    directory = export(trained_store, tmp_path)
    before = store_files(store_copy)
    with contextlib.closing(create_store(tmp_path / "other", make_form(MODEL, Lora(3, 8.0, TARGETS), "float32"))):
        pass
    for words, message in (
        (import_words(directory, store_copy), "user 'u3' has an adapter already"),
        (import_words(directory, store_copy, user="new", model=another_base), "(their weights differ)"),
        (import_words(directory, store_copy, "--keep", "bfloat16", user="new"), "dtype float32 in the store, bfloat16"),
        (import_words(directory, tmp_path / "other"), "rank 3 in the store, 2 requested"),
        (import_words(tmp_path / "nothing", store_copy, user="new"), str(tmp_path / "nothing")),
    ):
        assert lamp(*words) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    assert store_files(store_copy) == before
    assert not open_store(tmp_path / "other").entries
