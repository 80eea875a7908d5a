"""Work directories at URLs; `bucket://` is a local directory, and a second cache represents a second machine."""

import json
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from lamp_jax import cli
from lamp_jax.artifacts import adapters, segments
from lamp_jax.artifacts.adapters import AdapterEntry, AdapterForm, create_store, open_store
from lamp_jax.errors import LampError
from lamp_jax.runs import copies, remote
from lamp_jax.runs.journals import Journal


@dataclass(frozen=True)
class Options:
    output: str
    pool: tuple[str, ...] = ()
    page: str = "https://example.org/page"


def kill():
    """The command ends without sending anything; the system ends its locks."""
    for copy in remote._copies:
        copy.release()
    remote._copies.clear()


def fetch_copies(url, **more):
    return remote.fetch_urls(Options(url, **more))


def test_a_url_becomes_a_local_copy_and_other_options_stay(machine, bucket):
    (bucket / "bm25.json").write_text("[1]")
    options = fetch_copies(f"bucket:/{bucket}/run", pool=("none", f"bm25=bucket:/{bucket}/bm25.json"))
    assert options.page == "https://example.org/page"
    assert options.pool[0] == "none"
    name, _, path = options.pool[1].partition("=")
    assert name == "bm25"
    assert json.loads(Path(path).read_text()) == [1]


def test_written_files_are_sent_and_removed_files_are_removed_at_the_url(machine, bucket, tmp_path):
    out = Path(fetch_copies(f"bucket:/{bucket}/run/dev.json").output)
    out.write_text("answers")
    (out.parent / "dev.json.journal.jsonl").write_text("line\n")
    (out.parent / ".dev.json.7.unfinished").write_text("half")
    remote.publish()
    assert sorted(path.name for path in (bucket / "run").iterdir()) == ["dev.json", "dev.json.journal.jsonl"]
    (out.parent / "dev.json.journal.jsonl").unlink()
    remote.send_and_forget()
    assert [path.name for path in (bucket / "run").iterdir()] == ["dev.json"]


def test_another_machine_gets_the_latest_files(machine, bucket):
    out = Path(fetch_copies(f"bucket:/{bucket}/run").output)
    (out / "deep").mkdir(parents=True)
    (out / "deep" / "a.txt").write_text("one")
    remote.send_and_forget()
    machine("second")
    again = Path(fetch_copies(f"bucket:/{bucket}/run").output)
    assert again != out
    (again / "deep" / "a.txt").write_text("two, longer")
    (again / "b.txt").write_text("new")
    remote.send_and_forget()
    machine("first")
    fetch_copies(f"bucket:/{bucket}/run")
    assert (out / "deep" / "a.txt").read_text() == "two, longer"
    assert (out / "b.txt").read_text() == "new"
    shutil.rmtree(bucket / "run")
    remote.send_and_forget()


def test_checkpoints_belong_to_the_url_and_are_not_copied(machine, bucket):
    out = Path(fetch_copies(f"bucket:/{bucket}/run").output)
    assert remote.checkpoint_location(out / "checkpoints") == f"{bucket}/run/checkpoints"
    (bucket / "run" / "checkpoints").mkdir(parents=True)
    (bucket / "run" / "checkpoints" / "large").write_text("x")
    remote.send_and_forget()
    fetch_copies(f"bucket:/{bucket}/run")
    assert not (out / "checkpoints").exists()
    assert remote.checkpoint_location(Path("/elsewhere/checkpoints")) == "/elsewhere/checkpoints"


def test_checkpoints_at_a_url_that_orbax_does_not_support_are_refused(machine):
    out = Path(fetch_copies("memory://run").output)
    with pytest.raises(LampError, match="memory://run/checkpoints: checkpoints can be written to gs://"):
        remote.checkpoint_location(out / "checkpoints")


@pytest.mark.parametrize(("url", "said"), [("gs://b/x", r"\[gcs\]"), ("nothing://b/x", "such as gs://")])
def test_an_unreachable_url_is_an_error_with_the_remedy(machine, url, said):
    with pytest.raises(LampError, match=said):
        fetch_copies(url)


def test_a_journal_is_sent_periodically(machine, bucket, monkeypatch):
    monkeypatch.setattr(remote, "_PAUSE", 0.0)
    out = Path(fetch_copies(f"bucket:/{bucket}/run/dev.json").output)
    journal = Journal(out.with_name("dev.json.journal.jsonl"))
    journal.append([{"id": 1}])
    assert (bucket / "run" / "dev.json.journal.jsonl").read_text() == '{"id": 1}\n'
    journal.close()


FORM = AdapterForm("a1b2", "t5-small", 1, 32.0, ("q",), {"q.down": (40,), "q.up": (40,)})


def append(store, user):
    store.append([AdapterEntry(user, 1, 1, 0.5)], {name: np.ones((1, *shape)) for name, shape in FORM.shapes.items()})


@pytest.fixture
def sent(monkeypatch):
    """Sends files at once, however small; the list of sent files as (name, bytes)."""
    found, put = [], LocalFileSystem.put_file

    def put_and_record(self, path, there, **more):
        put(self, path, there, **more)
        found.append((Path(path).name, Path(path).stat().st_size))

    monkeypatch.setattr(LocalFileSystem, "put_file", put_and_record)
    monkeypatch.setattr(remote, "_PAUSE", 0.0)
    monkeypatch.setattr(copies, "_ALWAYS_SENT", 0)
    return found


def store_files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.endswith(".lock")}


def test_a_growing_store_is_sent_incrementally_and_can_be_opened_at_any_time(machine, bucket, sent, monkeypatch):
    """Segments are sent before the list that names them, and merged segments are removed after it."""
    monkeypatch.setattr(adapters, "SHARDS", segments.SHARDS._replace(fan_in=10))
    out = Path(fetch_copies(f"bucket:/{bucket}/run").output)
    put, remove = LocalFileSystem.put_file, LocalFileSystem.rm_file

    def look():
        if (bucket / "run" / "adapters.json").exists():
            store = open_store(bucket / "run")
            store.read(list(store.entries))

    def put_and_look(self, path, there, **more):
        put(self, path, there, **more)
        look()

    def look_and_remove(self, path):
        remove(self, path)
        look()

    monkeypatch.setattr(LocalFileSystem, "put_file", put_and_look)
    monkeypatch.setattr(LocalFileSystem, "rm_file", look_and_remove)
    with closing(create_store(out, FORM)) as store:
        for number in range(100):
            append(store, f"u{number}")
            remote.publish()  # as before a checkpoint
            assert store_files(bucket / "run") == store_files(out)
    remote.send_and_forget()
    assert store_files(bucket / "run") == store_files(out)
    numbers = sum(size for name, size in sent if name.startswith("adapters-"))
    assert numbers < 3 * (100 * FORM.bytes_per_user + 100 * 500)
    assert {name for name, _ in sent} > {"adapters.json"}


def test_changed_files_are_sent_at_once(machine, bucket, sent):
    """For example, a model is replaced by a better model while a log grows."""
    out = Path(fetch_copies(f"bucket:/{bucket}/run").output)
    out.mkdir(parents=True)
    for name in ("model", "log"):
        (out / name).write_text(100 * "a")
    remote.publish()
    with open(out / "log", "a") as log:
        log.write("b")
    remote.publish()
    assert len(sent) == 2
    (out / "model").write_text(100 * "b")
    remote.publish()
    assert [name for name, _ in sent[2:]] == ["log", "model"]
    (out / "model").unlink()
    remote.publish()
    assert not (bucket / "run" / "model").exists()


def test_adapters_not_sent_before_a_kill_are_sent_from_the_copy(machine, bucket, sent, monkeypatch):
    out = Path(fetch_copies(f"bucket:/{bucket}/run").output)
    with closing(create_store(out, FORM)) as store:
        for number in range(8):
            monkeypatch.setattr(remote, "_PAUSE", 0.0 if number < 4 else 1e9)
            append(store, f"u{number}")
    assert len(open_store(bucket / "run").entries) == 4
    kill()
    fetch_copies(f"bucket:/{bucket}/run")
    assert len(open_store(out).entries) == 8
    remote.send_and_forget()
    assert len(open_store(bucket / "run").entries) == 8
    del sent[:]
    fetch_copies(f"bucket:/{bucket}/run")
    remote.send_and_forget()
    assert not sent


def test_checkpoints_are_removed_at_the_url(machine, bucket, tmp_path):
    out = Path(fetch_copies(f"bucket:/{bucket}/run").output)
    for directory in (bucket / "run", tmp_path / "here"):
        (directory / "checkpoints" / "5").mkdir(parents=True)
        (directory / "run.json").write_text("{}")
    remote.remove_checkpoints(out)
    remote.remove_checkpoints(tmp_path / "here")
    for directory in (bucket / "run", tmp_path / "here"):
        assert [path.name for path in directory.iterdir()] == ["run.json"]
    remote.remove_checkpoints(out)
    remote.remove_checkpoints(tmp_path / "none")


@pytest.mark.slow
def test_stages_work_at_urls_and_resume_on_another_machine(machine, bucket, capsys):
    data = f"bucket:/{bucket}/data"
    size = ["--questions", "40", "--dev-questions", "16", "--profile-size", "4"]
    assert cli.main(["synth", "--task", "LaMP-2", "--output", data, *size]) == 0
    for split in ("train", "dev"):
        files = [f"--{kind}={data}/{split}_{kind}.json" for kind in ("questions", "outputs")]
        assert cli.main(["merge", *files, "--output", f"bucket:/{bucket}/{split}.json"]) == 0
    small = "--d-model 16 --d-ff 32 --num-layers 1 --num-decoder-layers 1 --num-heads 2 --vocab-size 400 --batch-size 8"
    words = [*small.split(), "--max-length", "64", "--decode", "labels", "--evaluate-every", "0.5", "--dropout", "0"]
    words = ["train", "--task", "LaMP-2", "--train", f"bucket:/{bucket}/train.json", "--model", "scratch", *words]
    words += ["--validation", f"bucket:/{bucket}/dev.json", "--output", f"bucket:/{bucket}/model", "--epochs", "1"]
    assert cli.main(words) == 0
    made = {path.name for path in (bucket / "model").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "metrics.jsonl", "checkpoints", "run.json"} <= made
    weights = (bucket / "model" / "model.safetensors").read_bytes()

    (bucket / "model" / "run.json").write_text(
        (bucket / "model" / "run.json").read_text().replace('"finished": true', '"finished": false')
    )
    machine("second")
    capsys.readouterr()
    assert cli.main(words) == 0
    assert "resuming after step 5 of 5" in capsys.readouterr().out
    assert (bucket / "model" / "model.safetensors").read_bytes() == weights
    assert cli.main([*words, "--force"]) == 0
    assert "resuming" not in capsys.readouterr().out
