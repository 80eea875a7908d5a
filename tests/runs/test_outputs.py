"""Output locations: separate from inputs, reserved by one command, replaced only once new content is complete."""

import contextlib
import itertools
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lamp_jax.errors import LampError
from lamp_jax.runs import outputs, records, remote
from lamp_jax.runs.outputs import check_apart, unnamed_files
from lamp_jax.runs.records import guard_outputs, reserve
from tests.bucket import url
from tests.examples import examples


@dataclass(frozen=True)
class Options:
    output: str
    number: int = 1
    force: bool = False


class Killed(BaseException):
    """Stands for SIGKILL: no later code runs."""


@guard_outputs
def write(options, *, directory, text, beside=None, until=None):
    """A stage that writes one or three files; `until` is called before each step."""
    named = {"scores": beside} if beside else {}
    record = reserve(
        options.output, options, inputs=[], directory=directory, makes=["*.txt", "deep/*.txt"], beside=named
    )
    if record.state == "done":
        return "done"
    step = until or (lambda: None)
    step()
    record.begin()
    step()
    if directory:
        (record.target / "deep").mkdir(exist_ok=True)
        for name in ("a.txt", "deep/b.txt"):
            (record.target / name).write_text(text)
            step()
    else:
        record.target.write_text(text)
        step()
    if beside:
        record.beside("scores").write_text(text)
        step()
    record.finish()
    return record.state


def texts(output):
    """The contents of an output, without records."""
    files = sorted(output.rglob("*.txt")) if output.is_dir() else [output]
    return {str(file.relative_to(output)): file.read_text() for file in files if "run." not in str(file)}


@pytest.mark.parametrize("directory", [True, False])
def test_a_failed_forced_run_keeps_the_old_output_and_the_next_run_replaces_it(tmp_path, directory):
    output, beside = tmp_path / "out", tmp_path / "scores.txt"
    options = Options(str(output))
    assert write(options, directory=directory, text="old", beside=beside) == "new"
    before = texts(output)
    forced = replace(options, number=2, force=True)
    for fails_at in range(1, 5):
        steps = itertools.count(1)

        def fail(steps=steps, fails_at=fails_at):
            if next(steps) == fails_at:
                raise LampError("bad input")

        with pytest.raises(LampError, match="bad input"):
            write(forced, directory=directory, text="half", beside=beside, until=fail)
        assert texts(output) == before
        assert beside.read_text() == "old"
        assert write(options, directory=directory, text="never") == "done" if not beside else True
    write(forced, directory=directory, text="new", beside=beside)
    assert set(texts(output).values()) == {"new"}
    assert beside.read_text() == "new"
    left = {path.name for path in [*tmp_path.iterdir(), *(output.iterdir() if directory else ())]}
    assert not {name for name in left if "unfinished" in name or "replaced" in name or "lock" in name}
    assert write(replace(options, number=2), directory=directory, text="never", beside=beside) == "done"


@pytest.mark.parametrize("directory", [True, False])
def test_a_kill_at_any_rename_is_completed_by_the_next_command(tmp_path, monkeypatch, directory):
    rename, seen = os.replace, 0
    for number in itertools.count():
        output, beside = tmp_path / f"out{number}", tmp_path / f"scores{number}.txt"
        options = Options(str(output))
        write(options, directory=directory, text="old", beside=beside)
        forced = replace(options, number=2, force=True)
        count = itertools.count()

        def kill(source, target, count=count, number=number):
            if next(count) == number:
                raise Killed
            rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", kill)
            try:
                write(forced, directory=directory, text="new", beside=beside)
            except Killed:
                seen += 1
            else:
                break
        write(forced, directory=directory, text="new", beside=beside)
        assert set(texts(output).values()) == {"new"}, number
        assert beside.read_text() == "new"
        names = {path.name for path in tmp_path.rglob("*")}
        assert not {name for name in names if "replaced" in name or name.endswith("unfinished")}, number
    assert seen > (6 if directory else 4)


@pytest.mark.parametrize("force", [False, True])
def test_a_kill_between_output_and_record_is_resumed(tmp_path, force):
    options = Options(str(tmp_path / "out.json"), force=force)
    steps = itertools.count(1)

    def kill():
        if next(steps) == 3:  # the output is there, the record is not finished
            raise Killed

    with pytest.raises(Killed):
        write(options, directory=False, text="first", until=kill)
    assert (tmp_path / "out.json").read_text() == "first"
    write(options, directory=False, text="second")
    assert (tmp_path / "out.json").read_text() == "second"


def test_force_removes_no_file_that_no_record_names(tmp_path):
    output = tmp_path / "out"
    options = Options(str(output))
    write(options, directory=True, text="old")
    assert unnamed_files(output) == []
    forced = replace(options, number=2, force=True)
    for name in ("thesis.doc", "deep/notes.md", "deeper/a.txt.bak", ".hidden", ".mine.77.unfinished/notes.md"):
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text("mine")
        with pytest.raises(LampError, match=f"files that a run record names, not .*{name}; move these files away"):
            write(forced, directory=True, text="new")
        assert (output / name).read_text() == "mine"
        assert (output / "a.txt").read_text() == "old"
        (output / name).unlink()
        if (output / name).parent.name == "deeper":
            with pytest.raises(LampError, match=r"files that a run record names, not .*deeper; move these files away"):
                write(forced, directory=True, text="new")
            (output / "deeper").rmdir()
    (output / "link").symlink_to(tmp_path)
    with pytest.raises(LampError, match="only files that a run record names"):
        write(forced, directory=True, text="new")


@pytest.mark.parametrize(
    "record", ["{}", "[]", "null", '{"project": "not of lamp"}', '{"stage": 1, "fingerprint": "x"}']
)
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("directory", [True, False])
def test_a_record_of_another_program_is_unchanged(tmp_path, record, force, directory):
    output = tmp_path / "out"
    if directory:
        output.mkdir()
        (output / "precious.txt").write_text("mine")
        path = output / "run.json"
    else:
        output.write_text("mine")
        path = tmp_path / "out.run.json"
    path.write_text(record)
    with pytest.raises(LampError, match="not a run record of lamp"):
        write(Options(str(output), force=force), directory=directory, text="new")
    assert path.read_text() == record
    assert (output / "precious.txt" if directory else output).read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_a_further_output_that_no_record_names_is_unchanged(tmp_path, force):
    beside = tmp_path / "scores.txt"
    beside.write_text("mine")
    options = Options(str(tmp_path / "out.json"), force=force)
    with pytest.raises(LampError, match=r"scores\.txt: .*move it away"):
        write(options, directory=False, text="new", beside=beside)
    assert beside.read_text() == "mine"
    write(replace(options, force=False), directory=False, text="old")
    with pytest.raises(LampError, match=r"scores\.txt: .*move it away"):
        write(options, directory=False, text="new", beside=beside)
    assert beside.read_text() == "mine"


def test_a_refused_command_removes_nothing(tmp_path):
    output = tmp_path / "project"
    (output / ".cache.unfinished").mkdir(parents=True)
    (output / "run.replaced").mkdir()
    for name in (".lock", "main.c", ".cache.unfinished/x", "run.replaced/x"):
        (output / name).write_text("mine")
    for force, message in ((False, "without a run record"), (True, "no run record names it")):
        with pytest.raises(LampError, match=message):
            write(Options(str(output), force=force), directory=True, text="new")
    (output / ".lamp.lock").write_text("mine")
    with pytest.raises(LampError, match="not a lock file of lamp"):
        write(Options(str(output)), directory=True, text="new")
    files = [path for path in output.rglob("*") if path.is_file()]
    assert len(files) == 5
    assert all(path.read_text() == "mine" for path in files)


@pytest.mark.parametrize("name", ["data", "a[1]"])
def test_only_an_outputs_own_temporary_directories_are_removed(tmp_path, name):
    others = [f".{name}.v2.abcdefgh.unfinished", f".{name}x.abcdefgh.unfinished", ".a1.abcdefgh.unfinished"]
    for other in [*others, f".{name}.abcdefgh.unfinished"]:
        (tmp_path / other).mkdir()
    write(Options(str(tmp_path / name)), directory=True, text="new")
    assert {path.name for path in tmp_path.iterdir()} == {name, *others}


@pytest.mark.parametrize("directory", [True, False])
def test_a_forced_run_that_writes_no_further_output_removes_the_old_one(tmp_path, directory):
    output, beside = tmp_path / "out", tmp_path / "scores.txt"
    write(Options(str(output)), directory=directory, text="old", beside=beside)

    @guard_outputs
    def without(options):
        record = reserve(options.output, options, inputs=[], directory=directory, makes=["*.txt"], beside={"s": beside})
        record.begin()
        (record.target / "a.txt" if directory else record.target).write_text("new")
        record.finish()

    without(Options(str(output), number=2, force=True))
    assert set(texts(output).values()) == {"new"}
    assert not beside.exists()


def test_a_missing_further_output_is_made_again_and_a_changed_further_output_is_refused(tmp_path):
    beside = tmp_path / "scores.txt"
    options = Options(str(tmp_path / "out.txt"))
    write(options, directory=False, text="old", beside=beside)
    assert write(options, directory=False, text="old", beside=beside) == "done"
    beside.unlink()
    assert write(options, directory=False, text="old", beside=beside) == "unfinished"
    assert beside.read_text() == "old"
    beside.write_text("mine")
    with pytest.raises(LampError, match=r"scores\.txt: was changed after it was made"):
        write(options, directory=False, text="old", beside=beside)
    assert beside.read_text() == "mine"


@pytest.mark.parametrize("directory", [True, False])
def test_outputs_are_recognized_by_any_path_and_after_a_move(tmp_path, monkeypatch, directory):
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(home)
    monkeypatch.chdir(home)
    write(Options("out"), directory=directory, text="old", beside=Path("scores.txt"))
    for there in (home, tmp_path / "link", Path("."), Path("sub/..")):
        for beside in ("scores.txt", "./scores.txt", home / "scores.txt"):
            options = Options(str(there / "out"))
            assert write(options, directory=directory, text="never", beside=Path(beside)) == "done"
    monkeypatch.chdir(tmp_path)
    home.rename(tmp_path / "moved")
    beside = tmp_path / "moved" / "scores.txt"
    assert write(Options("moved/out"), directory=directory, text="never", beside=beside) == "done"
    assert write(Options("moved/out", number=2, force=True), directory=directory, text="new", beside=beside) == "new"
    assert beside.read_text() == "new"


def test_the_working_directory_can_be_an_output(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert write(Options("."), directory=True, text="old") == "new"
    assert write(Options("."), directory=True, text="never") == "done"
    monkeypatch.chdir(tmp_path / "run" / "deep")
    assert write(Options("..", number=2, force=True), directory=True, text="new") == "new"
    assert texts(tmp_path / "run") == {"a.txt": "new", "deep/b.txt": "new"}
    monkeypatch.chdir(tmp_path / "run")
    for output in (".", "", ".."):
        with pytest.raises(LampError, match=r"a directory, where this command writes a file|--output is empty"):
            write(Options(output), directory=False, text="new")


@pytest.mark.parametrize(
    "beside",
    ["a.txt", "./a.txt", "a.txt.run.json", "a.txt.unfinished", "a.txt.journal.jsonl", "a.txt.unfinished.run.json"],
)
def test_two_outputs_at_the_same_path_are_refused(tmp_path, beside):
    with pytest.raises(LampError, match="would write two files to this path"):
        write(Options(str(tmp_path / "a.txt")), directory=False, text="new", beside=tmp_path / beside)
    assert not list(tmp_path.iterdir())


def test_a_further_output_inside_an_output_directory_is_refused(tmp_path):
    for beside in ("out/a.txt", "out/run.json", "out/scores.txt", "out/deep/../x"):
        with pytest.raises(LampError, match="is inside the output"):
            write(Options(str(tmp_path / "out")), directory=True, text="new", beside=tmp_path / beside)


def test_a_further_output_is_written_by_one_command_at_a_time(tmp_path):
    beside = tmp_path / "scores.txt"
    code = "import sys; from tests.runs.test_outputs import *; " + (
        "write(Options(sys.argv[1]), directory=False, text='other', beside=Path(sys.argv[2]))"
    )

    def other():
        words = [sys.executable, "-c", code, str(tmp_path / "other.txt"), str(beside)]
        found = subprocess.run(words, capture_output=True, text=True)
        assert "scores.txt: lamp options (process" in found.stderr
        assert "is writing to it" in found.stderr

    write(Options(str(tmp_path / "one.txt")), directory=False, text="one", beside=beside, until=other)
    assert beside.read_text() == "one"
    assert not (tmp_path / "other.txt").exists()


@pytest.mark.parametrize("directory", [True, False])
def test_force_does_not_overwrite_foreign_files_at_its_temporary_paths(tmp_path, directory):
    output, beside = tmp_path / "out", tmp_path / "scores.txt"
    write(Options(str(output)), directory=directory, text="old", beside=beside)
    foreign = [output / "run.unfinished" / "notes.txt", output / "run.replaced" / "notes.txt"]
    foreign = foreign if directory else [tmp_path / "out.unfinished"]
    for path in (*foreign, tmp_path / "scores.txt.unfinished"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        with pytest.raises(LampError, match="where --force writes, and no run record names it"):
            write(Options(str(output), number=2, force=True), directory=directory, text="new", beside=beside)
        assert path.read_text() == "mine"
        assert set(texts(output).values()) <= {"old", "mine"}
        path.unlink()
        if path.parent.name.startswith("run."):
            path.parent.rmdir()
    write(Options(str(output), number=2, force=True), directory=directory, text="new", beside=beside)
    assert set(texts(output).values()) == {"new"}


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_not_written_over_a_directory_nor_the_other_way_round(tmp_path, force):
    for directory in (True, False):
        output = tmp_path / f"{directory}"
        write(Options(str(output)), directory=directory, text="old")
        with pytest.raises(LampError, match="where this command writes a"):
            write(Options(str(output), force=force), directory=not directory, text="new")
        assert set(texts(output).values()) == {"old"}


@pytest.mark.parametrize("directory", [True, False])
def test_the_target_of_a_link_is_written(tmp_path, directory):
    real, link = tmp_path / "scratch" / "out", tmp_path / "link"
    real.parent.mkdir()
    if directory:
        real.mkdir()
    link.symlink_to(real)
    write(Options(str(link)), directory=directory, text="old")
    assert set(texts(real).values()) == {"old"}
    write(Options(str(link), number=2, force=True), directory=directory, text="new")
    assert link.is_symlink()
    assert set(texts(real).values()) == {"new"}
    assert write(Options(str(link), number=2), directory=directory, text="never") == "done"


def test_the_error_of_a_second_process_names_the_writing_process(tmp_path):
    holds = """
import sys
from dataclasses import dataclass
from lamp_jax.runs.records import reserve
@dataclass(frozen=True)
class Train:
    output: str
record = reserve(sys.argv[1], Train(sys.argv[1]), inputs=[], directory=sys.argv[2] == "True")
print("held", flush=True)
sys.stdin.read()
"""
    for directory in (True, False):
        output = tmp_path / f"{directory}"
        with subprocess.Popen(
            [sys.executable, "-c", holds, str(output), str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as other:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(LampError, match=rf"lamp train \(process {other.pid} on .*\) is writing to it"):
                write(Options(str(output)), directory=directory, text="new")
            other.kill()
        assert write(Options(str(output)), directory=directory, text="new") == "new"


@pytest.mark.parametrize(("held", "wanted"), [("-0", ""), ("", "-0"), ("-0", "-1")])
def test_a_directory_is_written_by_one_command_or_by_its_shards(tmp_path, held, wanted):
    """`--force` of a single shard would otherwise remove the files that other shards write."""
    holds = """
import sys
from pathlib import Path
from lamp_jax.runs.outputs import lock_output
lock_output(Path(sys.argv[1]), directory=True, shard=sys.argv[2], holder="lamp feedback")
print("held", flush=True)
sys.stdin.read()
"""
    output = tmp_path / "out"
    words = [sys.executable, "-c", holds, str(output), held]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        if held and wanted:
            outputs.unlock([outputs.lock_output(output, directory=True, shard=wanted, holder="lamp")])
        else:
            with pytest.raises(LampError, match=rf"lamp feedback \(process {other.pid} on .*\) is writing to it"):
                outputs.lock_output(output, directory=True, shard=wanted, holder="lamp")
        other.kill()
    outputs.unlock([outputs.lock_output(output, directory=True, shard=wanted, holder="lamp")])
    assert not (output / f".lamp.lock{wanted}").exists()


def test_an_abandoned_temporary_file_is_removed_by_the_next_write(tmp_path):
    from lamp_jax.runs.json_files import write_json

    (tmp_path / ".a.json.123.unfinished").write_text("half")
    (tmp_path / ".b.json.123.unfinished").write_text("half")
    write_json(tmp_path / "a.json", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.json.123.unfinished", "a.json"]


def test_a_parent_path_through_a_link_is_that_of_the_links_target(tmp_path, monkeypatch):
    """And not the parent of the link, which contains another output."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scratch" / "runs").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "scratch" / "runs")
    write(Options("out"), directory=True, text="mine")
    write(Options("link/../out"), directory=True, text="old")
    write(Options("link/../out", number=2, force=True), directory=True, text="new")
    assert set(texts(tmp_path / "out").values()) == {"mine"}
    assert set(texts(tmp_path / "scratch" / "out").values()) == {"new"}
    assert write(Options("out"), directory=True, text="never") == "done"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("directory", [True, False])
def test_a_command_that_failed_after_its_further_output_can_be_repeated(tmp_path, directory, force):
    output, beside = tmp_path / "out", tmp_path / "scores.txt"
    if force:
        write(Options(str(output)), directory=directory, text="old", beside=beside)

    @guard_outputs
    def fail(options):
        record = reserve(options.output, options, inputs=[], directory=directory, beside={"scores": beside})
        record.begin()
        record.beside("scores").write_text("half")
        raise LampError("no room")

    options = Options(str(output), number=2, force=force)
    with pytest.raises(LampError, match="no room"):
        fail(options)
    write(options, directory=directory, text="new", beside=beside)
    assert set(texts(output).values()) == {"new"}
    assert beside.read_text() == "new"


@pytest.mark.parametrize("force", [False, True])
def test_an_output_killed_before_its_record_exists_is_not_foreign(tmp_path, force):
    output = tmp_path / "out"
    if force:
        write(Options(str(output)), directory=True, text="old")
    begun = output / "run.unfinished" if force else output
    begun.mkdir()
    (begun / ".run.json.77.unfinished").write_text("{")
    write(Options(str(output), number=2, force=force), directory=True, text="new")
    assert set(texts(output).values()) == {"new"}
    assert not (output / "run.unfinished").exists()


def test_a_kill_of_a_forced_run_in_a_temporary_directory_is_completed(tmp_path):
    """The temporary directory of a tokenizer or of a data set."""
    output = tmp_path / "out"
    options = Options(str(output), number=2, force=True)
    write(Options(str(output)), directory=True, text="old")
    for name in (".tokenizer.a1b2c3d4.unfinished", ".building.unfinished"):
        record = reserve(output, options, inputs=[], directory=True, makes=["*.txt"])
        record.begin()
        (record.target / name).mkdir()
        (record.target / name / "half").write_text("{")
        write(options, directory=True, text="new")
        assert set(texts(output).values()) == {"new"}
        assert not (output / name).exists()


@pytest.mark.parametrize("force", [False, True])
def test_a_command_that_failed_in_a_temporary_directory_can_be_repeated(tmp_path, force):
    output = tmp_path / "out"
    if force:
        write(Options(str(output)), directory=True, text="old")

    @guard_outputs
    def fail(options):
        record = reserve(options.output, options, inputs=[], directory=True, makes=["*.txt"])
        record.begin()
        (record.target / ".building.unfinished").mkdir()
        (record.target / ".building.unfinished" / "half").write_text("{")
        raise LampError("no room")

    options = Options(str(output), number=2, force=force)
    with pytest.raises(LampError, match="no room"):
        fail(options)
    write(options, directory=True, text="new")
    assert texts(output) == {"a.txt": "new", "deep/b.txt": "new"}


def test_a_kill_while_old_files_are_removed_is_completed_by_the_next_command(tmp_path, monkeypatch):
    """Old files of an unfinished forced run and of a replaced output."""
    kinds, seen = (os.unlink, os.rmdir), 0
    for number in itertools.count():
        output = tmp_path / f"out{number}"
        write(Options(str(output)), directory=True, text="old")
        steps = itertools.count(1)

        def fail(steps=steps):
            if next(steps) == 4:
                raise LampError("bad input")

        with pytest.raises(LampError):
            write(Options(str(output), number=2, force=True), directory=True, text="half", until=fail)
        count = itertools.count()

        def killing(remove, count=count, number=number):
            def removes(gone, **more):
                remove(gone, **more)
                if next(count) == number and "lock" not in str(gone):
                    raise Killed

            return removes

        forced = Options(str(output), number=3, force=True)
        with monkeypatch.context() as patch:
            for remove in kinds:
                patch.setattr(os, remove.__name__, killing(remove))
            with contextlib.suppress(Killed):
                write(forced, directory=True, text="new")
                if next(count) <= number:
                    break
            seen += 1
        write(forced, directory=True, text="new")
        assert set(texts(output).values()) == {"new"}, number
        assert {path.name for path in output.iterdir()} == {"a.txt", "deep", "run.json"}, number
    assert seen > 8


def test_a_kill_while_a_lost_further_output_is_made_again_is_resumed(tmp_path):
    beside = tmp_path / "scores.txt"
    options = Options(str(tmp_path / "out.txt"))
    write(options, directory=False, text="on one device", beside=beside)
    beside.unlink()
    steps = itertools.count(1)

    def kill():
        if next(steps) == 3:
            raise Killed

    with pytest.raises(Killed):
        write(options, directory=False, text="on another", beside=beside, until=kill)
    assert write(options, directory=False, text="on another", beside=beside) == "unfinished"
    assert beside.read_text() == "on another"


def test_a_further_output_at_another_path_is_made_again(tmp_path, monkeypatch):
    """`--scores s.txt` in another working directory."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        write(Options(str(tmp_path / "out.txt")), directory=False, text="new", beside=Path("s.txt"))
        assert (tmp_path / name / "s.txt").read_text() == "new"
        assert write(Options(str(tmp_path / "out.txt")), directory=False, text="never", beside=Path("s.txt")) == "done"


def test_a_failed_reservation_leaves_no_lock(tmp_path, monkeypatch):
    def fail(output, *, directory):
        raise PermissionError(13, "Permission denied", str(output.parent))

    monkeypatch.setattr(records, "remove_temporary", fail)
    with pytest.raises(PermissionError):
        write(Options(str(tmp_path / "out")), directory=True, text="new")
    assert not list(tmp_path.iterdir())


def test_a_link_to_itself_is_a_named_error(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for directory in (True, False):
        with pytest.raises((LampError, OSError), match=f"{tmp_path}/loop"):
            write(Options(str(tmp_path / "loop")), directory=directory, text="new")


@pytest.mark.parametrize("at", [".run.json", ".journal.jsonl", ".unfinished", "/x"])
def test_outputs_at_urls_are_separate_from_each_other(machine, bucket, at):
    """Each has a separate copy, so their local paths differ."""

    @dataclass(frozen=True)
    class Rank:
        output: str
        scores: str

    options = remote.fetch_urls(Rank(url(bucket / "p"), f"{url(bucket / 'p')}{at}"))
    with pytest.raises(LampError, match=r"would write two files to this path|is inside the output"):
        write(Options(options.output), directory=at == "/x", text="new", beside=Path(options.scores))


# --- outputs separate from inputs, against a model of the file system

NAMES = st.sampled_from(["a", "b"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(lambda parts: "/".join(parts))


@st.composite
def trees(draw):
    """Directories and files by path, and links by path with their targets."""
    made: dict[str, str | None] = {}
    for path in draw(st.lists(PATHS, max_size=6)):
        made[path] = draw(st.none() | PATHS)
    return made, draw(PATHS), draw(PATHS)


@given(trees())
@example(({"a": None, "b/a": "a", "a/a": "b/a"}, "a", "b"))  # a link whose target is a link
@example(({"a": None, "b/a": "c", "c/x": "d", "a/a": "b/a/x"}, "a", "c"))  # and a link within the path of a target
@settings(max_examples=examples(400), deadline=None)
def test_replacing_an_allowed_output_leaves_every_input_readable(tmp_path_factory, tree):
    """The oracle removes the output and compares the content of the input before and after."""
    made, source, output = tree
    root = tmp_path_factory.mktemp("tree")
    for path, target in made.items():
        place = root / path
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if target is None:
                place.mkdir(exist_ok=True)
                (place / "content").write_text(path)
            else:
                place.symlink_to(root / target)
        except (FileExistsError, NotADirectoryError, OSError):
            continue
    try:
        before = snapshot(root / source)
    except OSError:
        return
    try:
        check_apart([root / output], [str(root / source)])
    except LampError:
        return
    real = Path(os.path.realpath(root / output))
    if real.is_dir():
        import shutil

        shutil.rmtree(real)
    elif real.exists():
        real.unlink()
    assert snapshot(root / source) == before


def snapshot(path):
    """Contents by name, through links; None for a missing path."""
    if path.is_file():
        return path.read_text()
    if not path.is_dir():
        return None
    found = {}
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            one = Path(folder, name)
            found[str(one.relative_to(path))] = one.read_text() if one.is_file() else one.exists()
    return found


@pytest.mark.parametrize("directory", [True, False])
def test_an_input_cannot_be_at_above_or_below_an_output(tmp_path, directory):
    source = tmp_path / "in"
    if directory:
        source.mkdir()
        (source / "model").write_text("weights")
    else:
        source.write_text("questions")
    (tmp_path / "link").symlink_to(source)
    places = [source, tmp_path, tmp_path / "link", source / "x", tmp_path / "none" / ".." / "in"]
    for place in places[: None if directory else 3]:
        with pytest.raises(LampError, match=f"the input {source}"):
            check_apart([place], [str(source)])
    for place in (tmp_path / "out", tmp_path / "in2", tmp_path / "in.json"):
        check_apart([place], [str(source), "google/flan-t5-base"])


def test_a_lock_file_is_removed_and_a_directory_that_was_made_for_it(tmp_path):
    output = tmp_path / "made"

    @guard_outputs
    def fail(options):
        reserve(options.output, options, inputs=[], directory=True)
        raise LampError("bad input")

    with pytest.raises(LampError):
        fail(Options(str(output)))
    assert not output.exists()
    output.mkdir()
    with pytest.raises(LampError):
        fail(Options(str(output)))
    assert list(output.iterdir()) == []
    assert not outputs._locks or all("made" not in str(path) for path in outputs._locks)
