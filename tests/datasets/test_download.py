"""Downloads from well-behaved and failing servers."""

import contextlib
import errno
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_jax.data.layout import TreeFile, benchmark_files
from lamp_jax.datasets.download import DownloadOutcome, DownloadSource, download
from lamp_jax.errors import LampError
from lamp_jax.options import Download
from lamp_jax.stages import download as stage
from lamp_jax.tasks.catalog import TASKS, BySplit

LAMP3 = replace(TASKS["LaMP-3"], counts=BySplit(user=(3, 3, 3), time=(3, 3, 3)))
FILE = TreeFile(LAMP3, "user", "train", "questions")
ITEM = {"id": "p1", "text": "good", "score": "4"}
QUESTIONS = json.dumps([{"id": str(n), "input": f"review: {n}", "profile": [ITEM]} for n in range(3)]).encode()
OUTPUTS = json.dumps({"task": "LaMP_3", "golds": [{"id": str(n), "output": "4"} for n in range(3)]}).encode()
HALF = len(QUESTIONS) // 2
PAGE = b"<!DOCTYPE html><html>University</html>"


@dataclass(frozen=True)
class Answer:
    """Response to a request; sends at most `cut` bytes, while the announced length is that of the body."""

    body: bytes = QUESTIONS
    status: int = 200
    cut: int | None = None
    etag: str | None = '"one"'
    modified: str | None = None
    piece: int | None = None  # maximum of what a response to a range announces and sends
    ranges: bool = True
    heeds_if_range: bool = True
    kind: str = "application/json"
    encoding: str | None = None
    length: bool = True
    stall: bool = False


class Server(ThreadingHTTPServer):
    """Serves a script of answers for each path; repeats the last answer of a script."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.scripts: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, str | None]] = []  # requested paths and ranges
        self.starts: list[int] = []  # positions where the answers begin
        self.released = threading.Event()

    def handle_error(self, request, client_address):
        """A client that disconnects is no failure of a test."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def script(self, *answers: Answer, file: TreeFile = FILE) -> None:
        self.scripts[f"/{file.path}"] = list(answers)

    @property
    def ranges(self) -> list[str | None]:
        return [span for _, span in self.requests]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        span = self.headers["Range"]
        self.server.requests.append((self.path, span))
        script = self.server.scripts.get(self.path, [Answer(PAGE, kind="text/html")])
        answer = script.pop(0) if len(script) > 1 else script[0]
        weak = answer.etag is None or answer.etag.startswith("W/")
        validator = answer.modified if weak else answer.etag
        same = not answer.heeds_if_range or (validator is not None and self.headers["If-Range"] == validator)
        partly = bool(span and answer.ranges and same and answer.status == 200)
        start = int(span.removeprefix("bytes=").removesuffix("-")) if partly else 0
        self.server.starts.append(start)
        end = min(len(answer.body), start + answer.piece) if partly and answer.piece else len(answer.body)
        past = start >= len(answer.body) > 0
        self.send_response(416 if past else 206 if partly else answer.status)
        self._send_headers(answer, start, end, partly=partly)
        sent = b"" if past else answer.body[start:end]
        self.wfile.write(sent[: answer.cut])
        self.wfile.flush()
        if answer.stall:
            self.server.released.wait(60)

    def _send_headers(self, answer: Answer, start: int, end: int, *, partly: bool) -> None:
        headers = {"ETag": answer.etag, "Last-Modified": answer.modified, "Content-Encoding": answer.encoding}
        headers["Content-Type"] = answer.kind
        if answer.length:
            headers["Content-Length"] = str(max(0, end - start))
        if partly:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(answer.body)}"
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_disks():
    """Skips fsync: power cuts are not tested here, and a busy disk would make the tests slow."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)
        yield


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def server():
    with serving() as one:
        yield one


@pytest.fixture
def mirror():
    with serving() as one:
        yield one


def fetch(root: Path, *addresses: str, files=(FILE,), attempts: int = 3, **options) -> list[DownloadOutcome]:
    source = DownloadSource(addresses, attempts=attempts, timeout=5, pause=0.001)
    return list(download(files, root, source=source, report=lambda *_: None, **options))


def assert_downloaded(root: Path, outcomes: list[DownloadOutcome], body: bytes = QUESTIONS) -> None:
    """One file was downloaded completely and recorded, and no other file is left."""
    assert [outcome.error for outcome in outcomes] == [None]
    place = root / FILE.path
    assert place.read_bytes() == body
    assert os.listdir(place.parent) == [place.name]
    entry = json.loads((root / "download.json").read_text())[str(FILE.path)]
    assert (entry["size"], entry["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())


def assert_failed(root: Path, outcomes: list[DownloadOutcome], *words: str) -> None:
    """One file was not downloaded, and the reason contains all these texts."""
    assert not (root / FILE.path).exists()
    for word in words:
        assert word in str(outcomes[0].error)


def partial_bytes(root: Path) -> bytes:
    path = (root / FILE.path).with_name(f".{FILE.name}.part")
    return path.read_bytes() if path.exists() else b""


def test_all_files_are_downloaded_and_a_second_run_requests_nothing(tmp_path, server):
    files = list(benchmark_files(LAMP3, "time"))
    for file in files:
        server.script(Answer(QUESTIONS if file.kind == "questions" else OUTPUTS), file=file)
    assert not [outcome for outcome in fetch(tmp_path, server.address, files=files, connections=3) if outcome.error]
    assert len(server.requests) == len(files) == 5
    assert json.loads((tmp_path / "download.json").read_text())["time/LaMP_3/dev/dev_outputs.json"] == {
        "url": f"{server.address}/time/LaMP_3/dev/dev_outputs.json",
        "size": len(OUTPUTS),
        "sha256": hashlib.sha256(OUTPUTS).hexdigest(),
        "records": 3,
        "etag": '"one"',
    }
    again = fetch(tmp_path, server.address, files=files)
    assert [(one.fetched, one.lines, one.error) for one in again] == [(False, (), None)] * 5
    assert len(server.requests) == 5


def test_a_broken_connection_is_resumed(tmp_path, server):
    server.script(Answer(cut=HALF), Answer())
    assert_downloaded(tmp_path, fetch(tmp_path, server.address))
    assert server.starts == [0, HALF]


def test_a_later_run_resumes_the_partial_file_of_an_earlier_run(tmp_path, server):
    server.script(Answer(cut=HALF), Answer(status=503))
    assert_failed(
        tmp_path, fetch(tmp_path, server.address, attempts=1), "HTTP 503", "run the same command to try again"
    )
    assert partial_bytes(tmp_path) == QUESTIONS[:HALF]
    server.script(Answer())
    assert_downloaded(tmp_path, fetch(tmp_path, server.address))
    assert server.ranges[-1] == f"bytes={HALF}-"


def test_last_modified_is_used_where_the_etag_is_weak(tmp_path, server):
    day = "Wed, 21 Oct 2015 07:28:00 GMT"
    server.script(Answer(etag='W/"weak"', modified=day, cut=HALF), Answer(etag='W/"weak"', modified=day))
    assert_downloaded(tmp_path, fetch(tmp_path, server.address))
    assert server.starts == [0, HALF]


def test_a_file_without_etag_and_date_is_never_resumed(tmp_path, server):
    server.script(Answer(etag='W/"weak"', cut=HALF), Answer(etag='W/"weak"'))
    assert_downloaded(tmp_path, fetch(tmp_path, server.address))
    assert server.ranges == [None, None]


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.tuples(st.integers(1, len(QUESTIONS)), st.booleans()), max_size=5))
def test_the_bytes_are_the_same_for_any_broken_connection_with_or_without_ranges(tmp_path_factory, cuts):
    root = tmp_path_factory.mktemp("cuts")
    with serving() as server:
        server.script(*(Answer(cut=cut, ranges=ranges) for cut, ranges in cuts), Answer())
        assert_downloaded(root, fetch(root, server.address, attempts=10))


def test_the_rest_of_an_incomplete_range_is_requested(tmp_path, server):
    server.script(Answer(cut=HALF), Answer(piece=10))
    assert_downloaded(tmp_path, fetch(tmp_path, server.address))
    assert server.starts == [0, *range(HALF, len(QUESTIONS), 10)]


def test_a_download_from_a_server_without_ranges_starts_over(tmp_path, server):
    server.script(Answer(cut=HALF), Answer(ranges=False))
    assert_downloaded(tmp_path, fetch(tmp_path, server.address))
    assert (server.ranges, server.starts) == ([None, f"bytes={HALF}-"], [0, 0])


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_the_download_of_a_changed_file_starts_over(tmp_path, server, heeds_if_range):
    new = QUESTIONS.replace(b"review", b"REVIEW")
    server.script(Answer(cut=HALF), Answer(new, etag='"two"', heeds_if_range=heeds_if_range))
    assert_downloaded(tmp_path, fetch(tmp_path, server.address), new)


def test_the_download_of_a_file_shorter_than_its_partial_starts_over(tmp_path, server):
    new = json.dumps([{"id": "1", "input": "x", "profile": []}]).encode()
    assert len(new) < HALF
    server.script(Answer(cut=HALF), Answer(new, heeds_if_range=False))
    assert_downloaded(tmp_path, fetch(tmp_path, server.address), new)
    assert server.ranges == [None, f"bytes={HALF}-", None]


def test_a_partial_file_without_metadata_is_not_used(tmp_path, server):
    place = tmp_path / FILE.path
    place.parent.mkdir(parents=True)
    place.with_name(f".{FILE.name}.part").write_bytes(b"of who knows what")
    server.script(Answer())
    assert_downloaded(tmp_path, fetch(tmp_path, server.address))
    assert server.ranges == [None]


@pytest.mark.parametrize("answer", [Answer(cut=HALF, ranges=False), Answer(cut=0), Answer(status=500)])
def test_an_address_that_sends_no_new_bytes_is_given_up(tmp_path, server, answer):
    server.script(answer)
    outcomes = fetch(tmp_path, server.address, attempts=3)
    assert_failed(tmp_path, outcomes, f"{server.address}/{FILE.path}", "given up after 3 attempts")
    assert len(server.requests) == (
        4 if answer.cut else 3
    )  # the first response, with half of the file, does not count as an attempt


def test_a_passing_error_is_tried_again(tmp_path, server):
    server.script(Answer(status=503), Answer(status=429), Answer())
    assert_downloaded(tmp_path, fetch(tmp_path, server.address))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(PAGE, kind="text/html"), "web page"),
        (Answer(b"\n " + PAGE), "web page"),
        (Answer(status=404), "HTTP 404"),
        (Answer(b""), "an empty file"),
        (Answer(QUESTIONS[:-9]), "not a questions file"),
        (Answer(OUTPUTS), "'input' must be a text, found nothing"),
        (Answer(encoding="gzip"), "gzip"),
    ],
)
def test_a_response_that_is_not_a_benchmark_file_is_refused_at_once(tmp_path, server, answer, words):
    server.script(answer)
    assert_failed(tmp_path, fetch(tmp_path, server.address), words)
    assert len(server.requests) == 1
    assert partial_bytes(tmp_path) == b""


def test_a_file_of_unknown_length_is_complete_when_its_json_is(tmp_path, server):
    server.script(Answer(length=False))
    assert_downloaded(tmp_path, fetch(tmp_path, server.address))
    server.script(Answer(length=False, cut=HALF))
    assert_failed(tmp_path / "other", fetch(tmp_path / "other", server.address), "truncated JSON")


def test_mirrors_are_tried_in_order_until_one_has_the_file(tmp_path, server, mirror):
    mirror.script(Answer(status=404))
    server.script(Answer())
    nobody = closed_address()
    assert_downloaded(
        tmp_path, fetch(tmp_path, nobody, mirror.address + "/", server.address, mirror.address, attempts=1)
    )
    assert (len(mirror.requests), len(server.requests)) == (1, 1)


def test_the_error_names_every_address_with_its_response(tmp_path, server, mirror):
    mirror.script(Answer(status=500))
    nobody = closed_address()
    words = (f"{mirror.address}/{FILE.path}: HTTP 500", f"{server.address}/{FILE.path}: sent a web page", nobody)
    assert_failed(tmp_path, fetch(tmp_path, mirror.address, server.address, nobody), *words)


def test_the_address_of_a_partial_file_resumes_it(tmp_path, server, mirror):
    mirror.script(Answer(status=404))
    server.script(Answer(cut=HALF, ranges=False))
    assert fetch(tmp_path, mirror.address, server.address)[0].error
    mirror.script(Answer())
    server.script(Answer())
    assert_downloaded(tmp_path, fetch(tmp_path, mirror.address, server.address))
    assert (len(mirror.requests), server.ranges[-1]) == (1, f"bytes={HALF}-")


def test_progress_of_an_address_that_starts_over_ignores_the_partial_of_another(tmp_path, server, mirror):
    mirror.script(Answer(cut=len(QUESTIONS) - 5), Answer(status=404))
    server.script(*(Answer(cut=size) for size in (10, 10, 10)), Answer())
    assert_downloaded(tmp_path, fetch(tmp_path, mirror.address, server.address, attempts=1))
    assert server.starts == [0, 10, 20, 30]


def test_a_file_of_mail_ids_is_accepted_as_a_benchmark_file(tmp_path, server):
    ids = json.dumps(
        [{"id": "1", "input": "043-008829-EM", "profile": [{"id": "9", "text": "043-000001-EM"}]}]
    ).encode()
    mails = TreeFile(TASKS["LaMP-6"], "user", "train", "questions")
    server.script(Answer(ids), file=mails)
    assert [outcome.error for outcome in fetch(tmp_path, server.address, files=[mails])] == [None]
    assert (tmp_path / mails.path).read_bytes() == ids


def test_one_files_failure_does_not_stop_the_others(tmp_path, server):
    other = TreeFile(LAMP3, "user", "dev", "questions")
    server.script(Answer(), file=other)
    outcomes = fetch(tmp_path, server.address, files=[FILE, other], connections=1)
    assert [bool(outcome.error) for outcome in outcomes] == [True, False]
    assert (tmp_path / other.path).read_bytes() == QUESTIONS


def test_an_unexpected_number_of_records_is_a_warning(tmp_path, server):
    server.script(Answer())
    updated = replace(FILE, task=replace(LAMP3, counts=BySplit(user=(4, 4, 4), time=(4, 4, 4))))
    (outcome,) = fetch(tmp_path, server.address, files=[updated])
    assert outcome.error is None
    assert "warning" in outcome.lines[1]
    assert "3 records, 4 were published" in outcome.lines[1]


def test_an_existing_file_is_checked_and_recorded_without_a_download(tmp_path, server):
    place = tmp_path / FILE.path
    place.parent.mkdir(parents=True)
    place.write_bytes(QUESTIONS[:-9])
    (bad,) = fetch(tmp_path, server.address)
    assert "truncated JSON" in str(bad.error)
    place.write_bytes(QUESTIONS)
    outcomes = fetch(tmp_path, server.address)
    assert_downloaded(tmp_path, outcomes)
    assert "not downloaded" in outcomes[0].lines[0]
    assert server.requests == []


def test_a_recorded_file_that_was_changed_is_neither_trusted_nor_overwritten(tmp_path, server):
    server.script(Answer())
    fetch(tmp_path, server.address)
    (tmp_path / FILE.path).write_bytes(OUTPUTS)
    (outcome,) = fetch(tmp_path, server.address)
    assert "was changed after the download; remove it" in str(outcome.error)
    assert (tmp_path / FILE.path).read_bytes() == OUTPUTS


def test_a_full_disk_is_named_and_the_partial_file_is_resumed(tmp_path, server, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    server.script(Answer())
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", full)
        (outcome,) = fetch(tmp_path, server.address)
    assert "No space left on device" in str(outcome.error)
    assert "free disk space" in str(outcome.error)
    assert_downloaded(tmp_path, fetch(tmp_path, server.address))


def test_a_stopped_download_tries_no_other_address_and_is_resumed(tmp_path, server, mirror):
    quick = TreeFile(LAMP3, "user", "dev", "questions")
    server.script(Answer(cut=HALF, stall=True), Answer())
    server.script(Answer(), file=quick)
    source = DownloadSource([server.address, mirror.address], pause=0.001)
    begun = threading.Event()

    def report(file: TreeFile, *_) -> None:
        if file == FILE:
            begun.set()

    outcomes = download([FILE, quick], tmp_path, source=source, report=report)
    assert next(outcomes).file == quick
    assert begun.wait(5)
    source.stop.set()
    server.released.set()
    outcomes.close()  # waits for the threads
    assert partial_bytes(tmp_path) == QUESTIONS[:HALF]
    assert mirror.requests == []
    assert [one.error for one in fetch(tmp_path, server.address)] == [None]
    assert (tmp_path / FILE.path).read_bytes() == QUESTIONS
    assert server.ranges[-1] == f"bytes={HALF}-"


def closed_address() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


def options(root: Path, **changes) -> Download:
    return Download(
        **{"output": str(root), "tasks": ("lamp_3", "LaMP-3"), "parts": ("train",), "attempts": 1} | changes
    )


@pytest.fixture
def site(server, monkeypatch):
    """Test server in place of the benchmark's address."""
    monkeypatch.setattr(stage, "SITE", server.address)
    server.script(Answer())
    server.script(Answer(OUTPUTS), file=replace(FILE, kind="outputs"))
    return server


def test_the_stage_downloads_each_file_once_and_verifies_it(tmp_path, site, mirror, capsys):
    stage.run(options(tmp_path, mirrors=(mirror.address,)))
    assert sorted(path for path, _ in site.requests) == sorted(site.scripts)
    assert len(mirror.requests) == 2
    assert "2 of 2 files are complete, 2 downloaded now" in capsys.readouterr().out
    stage.run(options(tmp_path, verify=True))
    assert capsys.readouterr().out.count("complete") == 2
    assert len(site.requests) == 2


def test_the_stage_lists_failed_downloads(tmp_path, site):
    with pytest.raises(LampError, match="2 of 4 files failed") as error:
        stage.run(options(tmp_path, parts=("train", "dev")))
    assert "dev_questions.json: no address" in str(error.value)
    assert "dev_outputs.json: no address" in str(error.value)
    assert "train_questions.json" not in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(QUESTIONS.replace(b"good", b"goof")), "SHA-256"),
        (lambda path: path.write_bytes(QUESTIONS[:-1]), "bytes, but"),
        (lambda path: path.unlink(), "missing"),
    ],
)
def test_verify_reports_changed_truncated_and_missing_files(tmp_path, site, capsys, spoil, words):
    stage.run(options(tmp_path))
    spoil(tmp_path / FILE.path)
    with pytest.raises(LampError, match="1 of 2 files are missing or wrong"):
        stage.run(options(tmp_path, verify=True))
    lines = capsys.readouterr().out.partition("state\n")[2].splitlines()
    (line,) = [line for line in lines if line.startswith(str(FILE.path))]
    assert "complete" not in line
    assert words in line
    assert len(site.requests) == 2


def test_verify_lists_files_that_were_never_downloaded(tmp_path, capsys):
    with pytest.raises(LampError, match="2 of 2 files are missing or wrong"):
        stage.run(options(tmp_path, verify=True))
    assert capsys.readouterr().out.count("missing") == 2
    assert list(tmp_path.iterdir()) == []


def test_without_tasks_all_current_tasks_are_downloaded():
    files = stage.choose_files(Download(output="x"))
    assert len(files) == 7 * 5
    assert {file.task.name for file in files} == {f"LaMP-{number}" for number in range(1, 8)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ("LaMP-9",)}, "unknown task 'LaMP-9'"),
        ({"parts": ()}, "--parts"),
        ({"connections": 0}, "--connections 0: must be at least 1"),
        ({"attempts": 0}, "--attempts 0: must be at least 1"),
        ({"timeout": 0.0}, "--timeout"),
        ({"mirrors": ("ftp.example.org",)}, "--mirrors ftp.example.org: not an address"),
    ],
)
def test_bad_options_are_named_before_anything_is_written(tmp_path, site, changes, words):
    with pytest.raises(LampError) as error:
        stage.run(options(tmp_path / "new", **changes))
    assert words in str(error.value)
    assert not (tmp_path / "new").exists()
    assert site.requests == []


def test_an_output_that_cannot_be_written_is_named(tmp_path, site, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(LampError, match="file: cannot be created as a directory"):
        stage.run(options(tmp_path / "file"))
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(LampError, match="no permission to write there"):
        stage.run(options(tmp_path))
    assert site.requests == []


@pytest.mark.parametrize("content", ["[]", '{"a": 1}', '{"a": {"size": 1}}', "{"])
def test_an_invalid_manifest_is_named(tmp_path, site, content):
    (tmp_path / "download.json").write_text(content)
    with pytest.raises(LampError, match=r"download\.json"):
        stage.run(options(tmp_path))
    assert site.requests == []


def test_an_interrupt_ends_a_silent_download_at_once_and_the_same_command_resumes(tmp_path, site):
    site.script(Answer(cut=HALF, stall=True), Answer())
    code = "import sys; from lamp_jax import cli; from lamp_jax.stages import download; "
    code += f"download.SITE = {site.address!r}; sys.exit(cli.main(sys.argv[1:]))"
    words = ["download", "--output", str(tmp_path), "--tasks", "LaMP-3", "--parts", "train"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 30
        while len(partial_bytes(tmp_path)) < HALF and time.monotonic() < deadline:
            time.sleep(0.01)
        assert partial_bytes(tmp_path) == QUESTIONS[:HALF]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=45) == 130  # the timeout of the silent server is a minute
    assert not (tmp_path / FILE.path).exists()
    stage.run(options(tmp_path))
    assert (tmp_path / FILE.path).read_bytes() == QUESTIONS
    assert (f"/{FILE.path}", f"bytes={HALF}-") in site.requests
