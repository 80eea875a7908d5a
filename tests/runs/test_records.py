"""Run records: behavior of a command whose output already exists."""

import errno
import fcntl
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from lamp_jax.errors import LampError
from lamp_jax.runs.journals import Journal, read_journal
from lamp_jax.runs.records import digest, reserve

HOLDS = """
import sys
from pathlib import Path
from lamp_jax.runs.journals import Journal
journal = Journal(Path(sys.argv[1]))
journal.append(["theirs"])
print("open", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_command(path):
    """Another process that has this journal open within the `with` block."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "open\n"
        try:
            yield
        finally:
            other.kill()


@dataclass(frozen=True)
class Options:
    questions: str
    output: str
    number: int = 4
    workers: int = 1
    force: bool = False


@pytest.fixture
def options(tmp_path):
    source = tmp_path / "questions.json"
    source.write_text("[]")
    return Options(str(source), str(tmp_path / "out.json"))


def reserved(options):
    return reserve(options.output, options, inputs=[options.questions], ignore=["workers"])


def make(options, text="made"):
    record = reserved(options)
    record.begin()
    record.target.write_text(text)
    record.finish(count=1)


def test_the_state_of_a_new_output_is_new_and_of_a_finished_output_done(options):
    assert reserved(options).state == "new"
    make(options)
    assert reserved(options).state == "done"


def test_a_moved_input_is_the_same_input(options, tmp_path):
    make(options)
    moved = tmp_path / "moved.json"
    moved.write_text("[]")
    assert reserved(replace(options, questions=str(moved))).state == "done"


def test_exchanged_inputs_are_other_inputs(options, tmp_path):
    @dataclass(frozen=True)
    class Train:
        train: str
        validation: str
        output: str

    names = [str(tmp_path / name) for name in ("a", "b")]
    for name in names:
        with open(name, "w") as file:
            file.write(name)
    record = reserve(options.output, Train(*names, options.output), inputs=names)
    record.begin()
    record.target.write_text("made")
    record.finish()
    assert reserve(options.output, Train(*names, options.output), inputs=names).state == "done"
    with pytest.raises(LampError, match="other settings or inputs"):
        reserve(options.output, Train(*names[::-1], options.output), inputs=names[::-1])


def test_files_that_no_command_reads_do_not_change_an_input_directory(tmp_path):
    """A clone's `.git`, and the checkpoints of a training; both are also excluded from inputs at a URL."""
    model = tmp_path / "model"
    (model / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "1_Pooling/config.json"):
        (model / name).write_text(name)
    before = digest(str(model))
    for name in (".git/index", ".cache/huggingface/x", "checkpoints/5/x", "run.unfinished/x", ".gitattributes"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(name)
        assert digest(str(model)) == before, name
    (model / "1_Pooling" / "config.json").write_text("{}")
    assert digest(str(model)) != before


def test_execution_only_options_do_not_change_the_fingerprint(options):
    make(options)
    assert reserved(replace(options, workers=8)).state == "done"


def test_other_settings_or_inputs_are_refused_and_force_starts_over(options, tmp_path):
    make(options)
    with pytest.raises(LampError, match="other settings or inputs"):
        reserved(replace(options, number=5))
    (tmp_path / "questions.json").write_text("[1]")
    with pytest.raises(LampError, match="other settings or inputs"):
        reserved(options)
    forced = reserved(replace(options, force=True))
    assert forced.state == "new"
    assert (tmp_path / "out.json").read_text() == "made"  # until the command's checks have passed
    forced.begin()
    forced.target.write_text("half")
    assert (tmp_path / "out.json").read_text() == "made"  # until the new output is complete
    forced.finish()
    assert (tmp_path / "out.json").read_text() == "half"
    assert reserved(options).state == "done"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(".out.json.lamp.lock", "out.json", "out.json.run.json", "questions.json")
    ]


def test_a_command_that_failed_before_its_work_does_not_reserve_the_output(options):
    reserved(options).begin()
    assert reserved(options).state == "new"
    assert reserved(replace(options, number=5)).state == "new"


def test_a_journal_is_resumed_only_by_the_same_command(options):
    record = reserved(options)
    record.begin()
    journal = Journal(record.journal)
    journal.append([["1", "a"]])
    journal.close()
    assert reserved(options).state == "unfinished"
    with pytest.raises(LampError, match="other settings or inputs"):
        reserved(replace(options, number=5))


def test_a_changed_output_is_refused(options, tmp_path):
    make(options)
    (tmp_path / "out.json").write_text("by hand")
    with pytest.raises(LampError, match="was changed after it was made"):
        reserved(options)


def test_a_file_without_a_record_is_refused(options, tmp_path):
    (tmp_path / "out.json").write_text("precious")
    with pytest.raises(LampError, match="exists without a run record"):
        reserved(options)


def test_force_never_removes_a_directory_that_was_not_made_here(options, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "precious.txt").write_text("precious")
    mine = replace(options, output=str(tmp_path / "home"), force=True)
    with pytest.raises(LampError, match="no run record names it"):
        reserve(mine.output, mine, inputs=[], directory=True)
    assert (tmp_path / "home" / "precious.txt").exists()


def test_an_unfinished_directory_is_resumed(options, tmp_path):
    mine = replace(options, output=str(tmp_path / "run"))
    reserve(mine.output, mine, inputs=[], directory=True).begin()
    (tmp_path / "run" / "part").write_text("half")
    assert reserve(mine.output, mine, inputs=[], directory=True).state == "unfinished"


def test_a_journal_keeps_complete_lines_and_drops_an_incomplete_line(tmp_path):
    path = tmp_path / "out.journal.jsonl"
    journal = Journal(path)
    journal.append([["1", "a\u2028b"], ["2", "b"]])
    journal.close()
    complete = path.read_bytes()
    path.write_bytes(complete + b'["3", "hal')
    journal = Journal(path)
    assert journal.entries == [["1", "a\u2028b"], ["2", "b"]]
    journal.append([["3", "c"]])
    journal.close()
    assert path.read_bytes() == complete + b'["3", "c"]\n'


def make_journal(path, *batches):
    journal = Journal(path)
    for batch in batches:
        journal.append(batch)
    return journal


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_a_journal_keeps_its_first_entries_and_appends_after_them(tmp_path, count):
    path = tmp_path / "out.journal.jsonl"
    journal = make_journal(path, ["a\u2028", ["b", 1]], [{"c": 2.5}])
    journal.keep(count)
    complete = ["a\u2028", ["b", 1], {"c": 2.5}][:count]
    assert journal.entries == complete
    journal.append(["d"])
    journal.close()
    assert list(read_journal(path)) == [*complete, "d"]
    make_journal(tmp_path / "straight", complete, ["d"]).close()
    assert path.read_bytes() == (tmp_path / "straight").read_bytes()


def test_a_truncated_journal_keeps_only_complete_entries(tmp_path):
    path = tmp_path / "out.journal.jsonl"
    make_journal(path, ["first", "second"]).close()
    path.write_bytes(path.read_bytes()[:-3])
    journal = Journal(path)
    journal.keep(1)
    journal.append(["other"])
    journal.close()
    assert path.read_bytes() == b'"first"\n"other"\n'


def test_a_line_of_a_journal_that_is_broken_is_named(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n')
    with pytest.raises(LampError, match=r"broken\.jsonl, line 2: invalid JSON"):
        list(read_journal(path))


def test_a_journal_is_written_by_one_command_at_a_time(tmp_path):
    path = tmp_path / "out.journal.jsonl"
    with another_command(path):
        path.write_bytes(path.read_bytes() + b'"hal')
        with pytest.raises(
            LampError, match=r"out\.journal\.jsonl: another lamp command is writing to it; wait until that command ends"
        ):
            Journal(path)
        assert path.read_bytes() == b'"theirs"\n"hal'
    journal = Journal(path)
    journal.append(["ours"])
    journal.close()
    assert list(read_journal(path)) == ["theirs", "ours"]


def test_a_file_system_without_locks_has_journals_too(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    make_journal(tmp_path / "out.jsonl", ["a"]).close()
    assert list(read_journal(tmp_path / "out.jsonl")) == ["a"]


def test_opening_a_journal_changes_nothing_and_a_damaged_journal_can_be_opened_again(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'"a"\n{\n"hal')
    for _ in range(2):
        with pytest.raises(LampError, match=r"out\.jsonl, line 2: invalid JSON"):
            Journal(path)
    path.write_bytes(b'"a"\n"hal')
    Journal(path).close()
    assert path.read_bytes() == b'"a"\n"hal'


def test_files_with_stored_checksums_are_excluded_from_the_digest_of_a_directory(tmp_path):
    for name in ("list.json", "rows-0.bin", "rows-1.bin"):
        (tmp_path / name).write_text(name)
    before, complete = digest(str(tmp_path), checked=["rows-*.bin"]), digest(str(tmp_path))
    (tmp_path / "rows-1.bin").write_text("other")
    assert digest(str(tmp_path), checked=["rows-*.bin"]) == before
    assert digest(str(tmp_path)) != complete
    (tmp_path / "list.json").write_text("other")
    assert digest(str(tmp_path), checked=["rows-*.bin"]) != before
