"""Local copies of URLs: inputs are unchanged and outputs are uploaded, for any names."""

import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamp_jax.errors import LampError, Preempted
from lamp_jax.runs import remote
from lamp_jax.runs.copies import LocalCopy
from lamp_jax.runs.outputs import check_apart, is_temporary, lock_path
from lamp_jax.runs.records import digest, guard_outputs, reserve
from lamp_jax.runs.urls import private_path
from tests.bucket import Bucket, url


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@dataclass(frozen=True)
class Reading:
    """Options with an input and an output."""

    questions: str
    output: str


@dataclass(frozen=True)
class Writing:
    output: str
    pool: tuple[str, ...] = ()


def fetch_copies(output: str, pool: tuple[str, ...] = ()) -> Writing:
    return remote.fetch_urls(Writing(output, pool))


SIMPLE = ("q", "q.json", ".hq.json", ".git", "checkpoints", "r[1]", "r1", "a b", "*", "x.lock", ".lock", "run.json")
NAMES = st.one_of(
    st.sampled_from(SIMPLE),
    st.text(st.sampled_from("ab.[]*?{} =%#-:é"), min_size=1, max_size=8).filter(
        lambda name: name not in (".", "..") and "::" not in name and "://" not in name and not name.endswith(":")
    ),
)
TREES = st.lists(st.lists(NAMES, min_size=1, max_size=3), min_size=1, max_size=6)


def make_tree(directory: Path, tree: list[list[str]]) -> None:
    """Creates a file at each path, except inside a file or in place of a directory."""
    for number, parts in enumerate(tree):
        path = directory.joinpath(*parts)
        if not path.exists() and not any(above.is_file() for above in path.parents):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * number)


FUNCTION_SCOPE = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUNCTION_SCOPE
@given(tree=TREES, place=st.lists(NAMES, min_size=1, max_size=2), data=st.data())
def test_inputs_stay_unchanged_and_their_copies_are_equal(machine, tmp_path_factory, tree, place, data):
    folder = tmp_path_factory.mktemp("b")
    make_tree(folder, [*tree, *([*place, *parts] for parts in tree)])
    before = contents(folder)
    source = folder.joinpath(*data.draw(st.sampled_from([place, *tree])))
    read = Path(remote.fetch_urls(Reading(url(source), url(folder / "elsewhere" / "out"))).questions)
    if source.is_file():
        assert read.read_bytes() == source.read_bytes()
    elif source.exists():
        known = {name: held for name, held in contents(source).items() if "checkpoints" not in name.split("/")[:-1]}
        assert contents(read) == known
    if read.is_dir():
        shutil.rmtree(read)  # the copy is then removed
    remote.send_and_forget()
    assert contents(folder) == before


@FUNCTION_SCOPE
@given(tree=TREES, place=st.lists(NAMES, min_size=1, max_size=2), directory=st.booleans(), written=TREES)
def test_outputs_are_sent_and_other_files_stay(machine, tmp_path_factory, tree, place, directory, written):
    folder = tmp_path_factory.mktemp("b")
    output = folder.joinpath(*place)
    make_tree(folder, tree)
    if output.exists() or any(above.is_file() for above in output.parents):
        return
    before = contents(folder)
    local = Path(fetch_copies(url(output)).output)
    if directory:
        reserved = (".lock", "checkpoints")  # lamp's own names in an output
        make_tree(local, [[name for name in parts if name not in reserved] or ["x"] for parts in written])
        made = {f"{'/'.join(place)}/{name}": held for name, held in contents(local).items()}
    else:
        made = {"/".join(place): b"answers", f"{'/'.join(place)}.extra": b"beside"}
        local.write_text("answers")
        local.with_name(f"{local.name}.extra").write_text("beside")
    remote.send_and_forget()
    assert contents(folder) == before | made


def test_copies_of_inputs_are_never_sent_or_removed(machine, bucket):
    """Also if files of the copy are changed, added or removed, or the complete copy is removed."""
    make_tree(bucket, [["m", ".git", "config"], ["m", "a"], ["m", "b"], [".hq.json"], ["m.run.json"]])
    before = contents(bucket)
    for name in ("m", ".hq.json", "none"):
        read = Path(remote.fetch_urls(Reading(url(bucket / name), url(bucket / "out"))).questions)
        if read.is_dir():
            (read / "a").write_text("changed")
            (read / "b").unlink()
            (read / "new").write_text("new")
        read.with_name("beside").write_text("new")
        remote.publish()
        shutil.rmtree(read.parent)
        remote.send_and_forget()
        assert contents(bucket) == before


def test_the_copy_of_an_input_follows_its_changes(machine, bucket):
    def read(name):
        found = Path(remote.fetch_urls(Reading(url(bucket / name), url(bucket / "out"))).questions)
        remote.send_and_forget()
        return found

    make_tree(bucket, [["m", "a"], ["m", "b", "c"]])
    assert contents(read("m")) == contents(bucket / "m")
    shutil.rmtree(bucket / "m" / "b")
    (bucket / "m" / "b").write_text("a file now")
    (bucket / "m" / "a").unlink()
    make_tree(bucket, [["m", "a", "d"]])
    assert contents(read("m")) == contents(bucket / "m") == {"a/d": b"", "b": b"a file now"}
    shutil.rmtree(bucket / "m")
    (bucket / "m").write_text("a file now")
    assert read("m").read_text() == "a file now"
    (bucket / "m").unlink()
    assert not read("m").exists()


def test_a_removed_copy_removes_nothing_at_the_url(machine, bucket):
    make_tree(bucket, [["run", "a"], ["run", "b"]])
    before, out = contents(bucket), Path(fetch_copies(url(bucket / "run")).output)
    shutil.rmtree(out.parent)
    with pytest.raises(LampError, match=f"{url(bucket / 'run')}: its copy in .* was removed while the command ran"):
        remote.send_and_forget()
    assert contents(bucket) == before
    assert contents(Path(fetch_copies(url(bucket / "run")).output)) == contents(bucket / "run")


def test_files_missing_in_the_copy_are_fetched_again(machine, bucket):
    """Another program removed a file from the cache between two commands."""
    make_tree(bucket, [["run", "a"], ["run", "b"]])
    out = Path(fetch_copies(url(bucket / "run")).output)
    remote.send_and_forget()
    (out / "a").unlink()
    fetch_copies(url(bucket / "run"))
    remote.send_and_forget()
    assert contents(out) == contents(bucket / "run") == {"a": b"", "b": b"x"}


def test_only_checkpoints_of_the_same_run_are_moved_and_removed(machine, bucket):
    """Brackets are no pattern: r[1] is not r1."""
    runs = {"r[1]": Path(fetch_copies(url(bucket / "r[1]")).output)}
    tree = [[run, *folder, "checkpoints", "5", "x"] for run in ("r[1]", "r1") for folder in ([], ["run.unfinished"])]
    make_tree(bucket, tree)
    before = contents(bucket / "r1")
    remote.move_checkpoints(runs["r[1]"] / "run.unfinished", runs["r[1]"])
    assert contents(bucket / "r[1]") == {"checkpoints/5/x": b"x"}
    remote.move_checkpoints(runs["r[1]"] / "run.unfinished", runs["r[1]"])
    assert contents(bucket / "r[1]") == {"checkpoints/5/x": b"x"}
    remote.remove_checkpoints(runs["r[1]"])
    assert contents(bucket / "r[1]") == {}
    assert contents(bucket / "r1") == before


@pytest.mark.parametrize(
    ("read", "written", "said"),
    [
        ("m", "m", "is also an input"),
        ("./m//", "m/.", "is also an input"),
        ("data/q.json", "data", "contains the input"),
        ("data", "data/r.json", "is inside the input"),
        ("p.scores.json", "p.json", "p.scores.json: is also an input"),
        ("m", "m2", None),
        ("data/q.json", "data/r.json", None),
    ],
)
def test_an_output_at_a_url_is_separate_from_every_input(machine, bucket, read, written, said):
    options = remote.fetch_urls(Reading(f"{url(bucket)}/{read}", f"{url(bucket)}/{written}"))
    places = [Path(options.output), Path(options.output).with_suffix(".scores.json")]
    if said is None:
        return check_apart(places, [options.questions])
    with pytest.raises(LampError, match=f"^{url(bucket)}/.*{said}"):
        check_apart(places, [options.questions])


def test_only_one_command_of_a_machine_writes_to_a_url(machine, bucket):
    """A second command would remove unsent files of the first; reading is allowed, and shards have separate copies."""
    first = LocalCopy(url(bucket / "p.json"), "written")
    first.fetch()
    first.local.write_text("not sent yet")
    with pytest.raises(LampError, match=f"^{url(bucket)}/p.json: another lamp command of this machine is writing"):
        fetch_copies(url(bucket / "p.json"))
    remote.fetch_urls(Reading(url(bucket / "p.json"), url(bucket / "p")))
    assert first.local.read_text() == "not sent yet"
    first.release()

    @dataclass(frozen=True)
    class Shard:
        output: str
        shard: int
        shards: int = 2

    outputs = [Path(remote.fetch_urls(Shard(url(bucket / "run"), 0)).output)]
    copies, remote._copies[:] = remote._copies[:], []  # as in another process
    outputs.append(Path(remote.fetch_urls(Shard(url(bucket / "run"), 1)).output))
    for number, output in enumerate(outputs):
        make_tree(output, [[f"items-{number}"]])
    remote.send_and_forget()
    remote._copies[:] = copies
    remote.send_and_forget()
    assert contents(bucket / "run").keys() == {"items-0", "items-1"}


def test_a_failed_upload_is_an_error_and_is_repeated_later(machine, bucket, monkeypatch):
    out = Path(fetch_copies(url(bucket / "p.json"), pool=(url(bucket / "q"),)).output)
    out.write_text("answers")
    with monkeypatch.context() as patch:
        patch.setattr(
            LocalFileSystem, "put_file", lambda *arguments, **more: None
        )  # an upload that does nothing and reports no error
        with pytest.raises(LampError, match=f"^{url(bucket)}/p.json: cannot be written .*FileNotFoundError"):
            remote.send_and_forget()
    fetch_copies(url(bucket / "p.json"))
    with monkeypatch.context() as patch:
        out.write_text("answers")
        patch.setattr(LocalFileSystem, "put_file", lambda self, path, there, **more: Path(there).write_text("ans"))
        with pytest.raises(LampError, match=f"^{url(bucket)}/p.json: 3 of 7 bytes have arrived"):
            remote.send_and_forget()


def test_an_unreadable_url_is_an_error_and_not_an_empty_directory(machine, bucket, monkeypatch):
    """Otherwise a network failure would let a command overwrite the existing output."""

    def fail(self, path, **more):
        raise PermissionError(f"no access to {path}")

    monkeypatch.setattr(LocalFileSystem, "info", fail)
    with pytest.raises(LampError, match=f"^{url(bucket)}/run: cannot be read .PermissionError: no access"):
        fetch_copies(url(bucket / "run"))


@pytest.mark.parametrize("directory", [True, False])
def test_locks_and_temporary_files_are_not_sent(machine, bucket, directory):
    out = Path(fetch_copies(url(bucket / "run")).output)
    kept = out / "a" if directory else out
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("kept")
    passing = [lock_path(out, directory=directory, shard=shard) for shard in ("", "-3")]
    passing += [kept.with_name(f".{kept.name}.{drawn}.unfinished") for drawn in ("77", "a1b2_c3d")]
    for path in passing:
        assert is_temporary(path)
        path.write_text("passing")
    remote.send_and_forget()
    assert contents(bucket) == {"run/a" if directory else "run": b"kept"}


def test_a_finished_record_is_never_stored_with_files_of_another_run(machine, bucket, monkeypatch):
    """A kill between two files of a forced run leaves no record of the old run with files of the new run."""
    finished = '{"finished": true}'
    out = Path(fetch_copies(url(bucket / "run")).output)
    make_tree(out, [["a"], ["b"]])
    (out / "run.json").write_text(finished)
    remote.send_and_forget()
    assert contents(bucket / "run").keys() == {"a", "b", "run.json"}
    fetch_copies(url(bucket / "run"))
    (out / "a").write_text("new")
    (out / "run.json").write_text(finished + " ")
    put = LocalFileSystem.put_file

    def put_one(self, path, there, **more):
        if len(contents(bucket / "run")) and (bucket / "run" / "a").read_text() == "new":
            raise KeyboardInterrupt
        put(self, path, there, **more)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "put_file", put_one)
        with pytest.raises(KeyboardInterrupt):
            remote.send_and_forget()
    left = contents(bucket / "run")
    assert not json.loads(left.pop("run.json"))["finished"]
    assert left == {"a": b"new", "b": b"x"}
    kill()
    fetch_copies(url(bucket / "run"))
    remote.send_and_forget()
    assert contents(bucket / "run") == {"a": b"new", "b": b"x", "run.json": f"{finished} ".encode()}


@pytest.mark.parametrize("above", [["ds"], ["lamp", "lamp_3_user", "1.0.0"]])
def test_a_split_of_a_data_set_is_read_with_its_directory(machine, bucket, above):
    make_tree(bucket, [[*above, "dataset_info.json"], [*above, "lamp-train.array_record-0"], ["other", "x"]])
    directory = bucket / "ds" if above == ["ds"] else bucket
    read = Path(remote.fetch_urls(Reading(url(directory / "train"), url(bucket / "out"))).questions)
    expected = contents(bucket)
    del expected["other/x"]
    if above == ["ds"]:
        expected = {name.removeprefix("ds/"): held for name, held in expected.items()}
    assert {name: held for name, held in contents(read.parent).items() if not name.startswith(".::")} == expected
    before = digest(str(read.parent))
    machine("second")
    read = Path(remote.fetch_urls(Reading(url(directory / "train"), url(bucket / "out2"))).questions)
    assert digest(str(read.parent)) == before


def test_a_command_stopped_while_sending_is_no_error(machine, bucket, monkeypatch):
    def stop(self, path, there, **more):
        raise Preempted

    out = Path(fetch_copies(url(bucket / "p.json")).output)
    out.write_text("answers")
    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "put_file", stop)
        with pytest.raises(Preempted):
            remote.publish()
    remote.send_and_forget()
    assert contents(bucket) == {"p.json": b"answers"}


def test_an_object_store_without_directories(machine):
    """Objects only have names; an object may represent a directory, and checkpoints are moved and removed by name."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    out = Path(fetch_copies("memory://b/r[1]").output)
    make_tree(out, [["a b"], [".git", "config"]])
    remote.send_and_forget()
    for name in ("r[1]/run.unfinished/checkpoints/5/x", "r1/checkpoints/5/x", "r[1]/checkpoints/4/x"):
        fs.pipe_file(f"/b/{name}", name.encode())
    remote.move_checkpoints(out / "run.unfinished", out)
    sent = ["/b/r[1]/.git/config", "/b/r[1]/a b"]
    assert sorted(fs.store) == ["/b/r1/checkpoints/5/x", *sent, "/b/r[1]/checkpoints/5/x"]
    remote.remove_checkpoints(out)
    assert contents(Path(remote.fetch_urls(Reading("memory://b/r[1]/", "memory://b/x")).questions)) == contents(out)
    fetch_copies("memory://b/r[1]")
    (out / "a b").unlink()
    remote.send_and_forget()
    assert sorted(fs.store) == ["/b/r1/checkpoints/5/x", "/b/r[1]/.git/config"]
    fs.store.clear()


class Listed(Bucket):
    """Like an object store: after a listing, `info` returns other fields of a file until the cache is invalidated."""

    protocol = "listed"
    listed = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("listed://"))

    def ls(self, path, detail=False, **more):
        self.listed = True
        return super().ls(path, detail=detail, **more)

    def info(self, path, **more):
        found = super().info(path, **more)
        return found | ({"Key": found["name"]} if self.listed else {"ContentType": "text"})

    def invalidate_cache(self, path=None):
        self.listed = False


fsspec.register_implementation("listed", Listed, clobber=True)


@pytest.mark.parametrize("at", [url, lambda path: f"listed:/{path}"])
@pytest.mark.parametrize("sent", [True, False])
def test_unsent_files_of_a_killed_command_are_kept(machine, bucket, at, sent):
    out = Path(fetch_copies(at(bucket / "run")).output)
    make_tree(out, [["a"], ["b"]])
    if sent:
        remote.publish()
    make_tree(out, [["c"], ["d"]])
    made = contents(out)
    kill()
    fetch_copies(at(bucket / "run"))
    assert contents(out) == made
    remote.send_and_forget()
    assert contents(bucket / "run") == made


def kill() -> None:
    """The command ends without sending anything; the system ends its locks."""
    for copy in remote._copies:
        copy.release()
    remote._copies.clear()


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("after_change", [True, False])
def test_a_kill_at_any_change_of_the_url_loses_no_local_file(machine, bucket, monkeypatch, after_change):
    """Otherwise the complete results of a forced run would be replaced by the remaining files at the URL."""
    for number in itertools.count():
        place = bucket / str(number)
        out, calls = Path(fetch_copies(url(place)).output), itertools.count()
        make_tree(out, [["a"], ["b"], ["run.unfinished", "b"], ["run.unfinished", "c"], ["p.journal.jsonl"]])
        (out / "run.json").write_text('{"finished": true}')
        remote.publish()
        for name in ("b", "c"):
            (out / "run.unfinished" / name).rename(out / name)
        for name in ("a", "p.journal.jsonl"):
            (out / name).unlink()
        (out / "run.json").write_text('{"finished": true, "forced": true}')
        made = contents(out)

        def killing(change, calls=calls, number=number):
            def changes(*arguments, **more):
                now = next(calls) == number
                if not (now and not after_change):
                    change(*arguments, **more)
                if now:
                    raise Killed

            return changes

        with monkeypatch.context() as patch:
            for name in ("put_file", "rm_file", "pipe_file"):
                patch.setattr(LocalFileSystem, name, killing(getattr(LocalFileSystem, name)))
            try:
                remote.send_and_forget()
                break
            except Killed:
                kill()
        fetch_copies(url(place))
        assert contents(out) == made, number
        remote.send_and_forget()
        assert contents(place) == made, number
    assert number > 6


@dataclass(frozen=True)
class Train:
    output: str
    number: int
    force: bool = False


@guard_outputs
def train(options: Train, *, directory: bool) -> None:
    record = reserve(options.output, options, inputs=[], directory=directory, makes=["*.txt"])
    if record.state != "done":
        record.begin()
        text = f"run{options.number}"
        for name in ("a.txt", f"{text}.txt") if directory else ("",):
            (record.target / name).write_text(text)
        record.finish()


@pytest.mark.parametrize("directory", [True, False])
@pytest.mark.parametrize("force", [True, False])
def test_another_machine_resumes_when_a_machine_is_lost_while_sending(machine, bucket, monkeypatch, directory, force):
    """The same command resumes. If there was another run, no other command accepts the mixture as its own output."""

    def run(number, *, force=False):
        train(remote.fetch_urls(Train(url(place), number, force)), directory=directory)
        remote.send_and_forget()

    for lost_at in itertools.count():
        place, put, calls = bucket / str(lost_at), LocalFileSystem.put_file, itertools.count()
        machine("first")
        if force:
            run(1)

        def lose(self, path, there, put=put, lost_at=lost_at, calls=calls, **more):
            if next(calls) == lost_at:
                raise Killed
            put(self, path, there, **more)

        lost = False
        with monkeypatch.context() as patch:
            patch.setattr(LocalFileSystem, "put_file", lose)
            try:
                run(2, force=force)
            except Killed:
                lost = True
                kill()
        machine(f"second{lost_at}")
        for number in (1, 2) if force and lost else ():
            with pytest.raises(LampError, match="with other settings or inputs"):
                run(number)
            remote.send_and_forget()
        run(2, force=force)
        if directory:
            assert contents(place).keys() == {"a.txt", "run2.txt", "run.json"}
        assert (place / "a.txt" if directory else place).read_text() == "run2"
        assert json.loads((place / "run.json" if directory else Path(f"{place}.run.json")).read_bytes())["finished"]
        if not lost:
            break
    assert lost_at == (3 if directory else 2)


def test_empty_notes_of_a_crashed_machine_are_ignored(machine, bucket):
    out = Path(fetch_copies(url(bucket / "run")).output)
    make_tree(out, [["a"], ["b"]])
    remote.send_and_forget()
    private_path(out.parent, "fetched.json").write_text("")
    fetch_copies(url(bucket / "run"))
    assert contents(out) == contents(bucket / "run") == {"a": b"", "b": b"x"}
