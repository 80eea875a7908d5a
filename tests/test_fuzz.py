"""Damaged and extreme files: every reader returns their contents or raises LampError with the reason."""

import json

import pytest

from lamp_jax.config import Work
from lamp_jax.data.files import read_questions
from lamp_jax.datasets.checking import check_file
from tests import fuzz_directories
from tests.fuzz import fuzz

TEXT = 'What is it? é \u0085 \u2028 \\ " [{ \U0001f600\r\n'
QUESTIONS = [
    {"id": str(key), "input": f"review: {TEXT}", "profile": [{"id": f"{key}0", "text": TEXT, "score": "4"}]}
    for key in range(3)
]


def test_damaged_files_are_read_or_refused_and_refused_files_fail_the_check(tmp_path):
    counts, failures = fuzz(400, 7, tmp_path)
    assert not failures, "\n".join(failures)
    outcomes = {outcome.rpartition(": ")[2] for outcome in counts}
    assert outcomes == {"read", "refused", "sound", "errors"}


def test_the_fuzz_reports_other_exceptions_of_readers(tmp_path, monkeypatch):
    def read(path):
        raise KeyError(path)

    monkeypatch.setattr("tests.fuzz.read_candidates", read)
    counts, failures = fuzz(60, 0, tmp_path)
    kept = list(tmp_path.glob("outputs-*.json"))
    assert len(kept) == len(failures) == counts["candidates, read_candidates: FAILED"] > 0
    assert all("KeyError" in failure for failure in failures)


def test_damaged_directories_are_read_or_refused_and_incomplete_directories_are_refused(tmp_path):
    counts, failures = fuzz_directories.fuzz(200, 7, tmp_path)
    assert not failures, "\n".join(failures)
    outcomes = {outcome.rpartition(": ")[2] for outcome in counts}
    assert outcomes == {"read", "refused"}


def test_the_fuzz_of_directories_reports_other_exceptions_of_readers(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz_directories, "load_generator", lambda directory: None)
    counts, failures = fuzz_directories.fuzz(60, 0, tmp_path)
    assert len(failures) == sum(count for name, count in counts.items() if name.endswith("FAILED")) > 0
    assert all("it was read" in failure for failure in failures)


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_line_ends_byte_order_marks_and_escapes_change_nothing(tmp_path, ascii_only, mark, line):
    plain, other = tmp_path / "plain.json", tmp_path / "other.json"
    plain.write_text(json.dumps(QUESTIONS), encoding="utf-8")
    other.write_bytes(mark + json.dumps(QUESTIONS, indent=1, ensure_ascii=ascii_only).replace("\n", line).encode())
    questions = read_questions(other)
    assert questions == read_questions(plain)
    assert questions[0].profile[0]["text"] == TEXT


@pytest.mark.slow
def test_one_record_of_100_megabytes_is_read(tmp_path):
    path = tmp_path / "long.json"
    long_text = ("plain words " * 40 + TEXT) * 40
    text = json.dumps(long_text).encode()
    items = 100 * 2**20 // len(text)
    begin = b'[{"id": "0", "input": "review: x", "profile": []},\n{"id": "1", "input": "review: y", "profile": ['
    with open(path, "wb") as file:
        file.write(begin)
        file.write(b", ".join(b'{"id": "%d", "text": %b, "score": "4"}' % (key, text) for key in range(items)))
        file.write(b"]}]")
    assert path.stat().st_size > 100 * 10**6
    questions = read_questions(path)
    assert [len(question.profile) for question in questions] == [0, items]
    assert all(item["text"] == long_text for item in questions[1].profile)
    checked = check_file(path, work=Work(workers=1))
    assert (checked.errors, checked.facts["profile sizes"]["max"]) == (0, items)
