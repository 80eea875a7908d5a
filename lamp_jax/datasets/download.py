"""Download of the benchmark's files: resumed, checked, renamed when complete, recorded in the download manifest."""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from lamp_jax.data.layout import FileKind, TreeFile
from lamp_jax.datasets.manifest import DownloadManifest, ManifestEntry, examine
from lamp_jax.errors import LampError
from lamp_jax.runs.json_files import read_json, write_json

if TYPE_CHECKING:
    import requests

ProgressCallback = Callable[[TreeFile, int, int | None], None]
"""Callback with a file, its bytes so far, and its size (None where the server does not report it)."""

_CHUNK = 2**18
_MAX_PAUSE = 10.0
_WAIT_SECONDS = 0.5
_TRANSIENT = (408, 425, 429)  # client errors that may not recur
_WEB_PAGE = "sent a web page, which is not a file of the benchmark"
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


@dataclass(frozen=True)
class DownloadSource:
    """Addresses of files, in the order in which they are tried, and retry settings."""

    addresses: Sequence[str]
    attempts: int = 5
    timeout: float = 60.0
    pause: float = 0.5  # seconds before the second attempt; doubled after each attempt without new bytes
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class DownloadOutcome:
    """Result of a file's download: whether bytes were fetched, messages for the user, and the error."""

    file: TreeFile
    fetched: bool = False
    lines: tuple[str, ...] = ()
    error: LampError | None = None


def download(
    files: Iterable[TreeFile], root: Path, *, source: DownloadSource, connections: int = 4, report: ProgressCallback
) -> Generator[DownloadOutcome, None, None]:
    """Downloads files into a tree, several at the same time; yields the outcome of each, in order of completion.

    Recorded files are not fetched again; an existing unrecorded file is checked and recorded. If the iteration ends
    early (Ctrl-C), partial files are kept, and the next call resumes them. Raises LampError for an invalid
    `download.json`; the error of a file is in its outcome.
    """
    waiting: SimpleQueue[TreeFile] = SimpleQueue()
    done: SimpleQueue[DownloadOutcome | BaseException] = SimpleQueue()
    manifest = DownloadManifest(root)
    for wanted in files:
        waiting.put(wanted)

    def work() -> None:
        while not source.stop.is_set():
            try:
                done.put(_download_file(waiting.get_nowait(), root, source=source, manifest=manifest, report=report))
            except Empty:
                return
            except BaseException as error:  # for the caller's thread, which raises it
                done.put(error)

    count = waiting.qsize()
    # Daemons: Ctrl-C must not wait for a server that does not respond.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(connections, count))]
    for thread in threads:
        thread.start()
    try:
        for _ in range(count):
            outcome = _wait(done)
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
    finally:
        source.stop.set()
        for thread in threads:
            thread.join(0.5)


def _wait(done: "SimpleQueue[DownloadOutcome | BaseException]") -> DownloadOutcome | BaseException:
    while True:
        # Bounded waits: a signal that another thread received is handled between two of them.
        with contextlib.suppress(Empty):
            return done.get(timeout=_WAIT_SECONDS)


def _download_file(
    file: TreeFile, root: Path, *, source: DownloadSource, manifest: DownloadManifest, report: ProgressCallback
) -> DownloadOutcome:
    path, known = root / file.path, manifest.find(file)
    try:
        if path.exists() and known:
            if path.stat().st_size == known.size:
                return DownloadOutcome(file)
            raise LampError(
                f"{path}: was changed after the download; remove it, and run the same command again to download it"
            )
        if path.exists():
            entry, line = examine(path, file.kind), "existed already: checked and recorded, not downloaded"
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            entry = _fetch(file, path, source=source, report=report)
            line = f"{entry.records} records, {entry.size} bytes"
        manifest.record(file, entry)
    except LampError as error:
        return DownloadOutcome(file, error=error)
    except OSError as error:
        remedy = "free disk space or get write permission, then run the same command again to resume"
        return DownloadOutcome(file, error=LampError(f"{path}: cannot be read or written ({error}); {remedy}"))
    lines = [f"{file.path}: {line}"]
    if file.count not in (None, entry.records):
        lines.append(
            f"warning: {file.path} contains {entry.records} records, {file.count} were published; was the file updated?"
        )
    return DownloadOutcome(file, fetched=entry.url is not None, lines=tuple(lines))


class _AttemptFailed(Exception):  # noqa: N818 (names the state of a connection)
    """Failed attempt, which may be repeated."""


class _AddressFailed(Exception):  # noqa: N818 (names the response of an address)
    """Address that does not have or serve the file."""


class _Stopped(Exception):  # noqa: N818 (as above)
    """Download that the caller stopped."""


@dataclass(frozen=True)
class _Origin:
    """Identity of the server's file to which a partial file belongs."""

    url: str
    size: int | None
    etag: str | None
    modified: str | None

    @property
    def validator(self) -> str | None:
        """Validator for If-Range; a weak ETag does not guarantee equal bytes (RFC 9110, 13.1.5)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class _Partial:
    """Partial file with the bytes received so far, and a small file beside it with their origin."""

    def __init__(self, path: Path):
        self.path = path.with_name(f".{path.name}.part")
        self.note = path.with_name(f".{path.name}.part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def origin(self) -> _Origin | None:
        """Origin of the bytes; None where there are no bytes, or their origin is not known."""
        if not (self.note.exists() and self.path.exists()):
            return None
        try:
            return _Origin(**read_json(self.note))
        except (LampError, TypeError):
            return None

    def begin(self, origin: _Origin) -> None:
        self.discard()
        write_json(self.note, asdict(origin))
        self.path.touch()

    def discard(self) -> None:
        # In this order, a kill between the two leaves bytes without an origin, which are not used.
        self.note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def finish(self, path: Path) -> None:
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.path, path)
        self.note.unlink(missing_ok=True)


def _fetch(file: TreeFile, path: Path, *, source: DownloadSource, report: ProgressCallback) -> ManifestEntry:
    """Fetches a file from the first address that has it. LampError with the failure of each address."""
    partial, failures = _Partial(path), []
    urls = [f"{address.rstrip('/')}/{file.path}" for address in source.addresses]
    previous = partial.origin
    # Bytes of one address cannot be resumed at another, so the address of the partial file is tried first.
    for url in sorted(urls, key=lambda url: previous is None or url != previous.url):
        try:
            origin = _retry(url, partial, source, lambda received, size: report(file, received, size))
            entry = _examine_partial(partial, file.kind, origin)
        except _AddressFailed as error:
            failures.append(f"{url}: {error}")
        else:
            partial.finish(path)
            return entry
    remedy = "run the same command to try again, or give other addresses with --mirrors"
    raise LampError("\n  ".join([f"{file.path}: no address has the complete file; {remedy}", *failures]))


def _examine_partial(partial: _Partial, kind: FileKind, origin: _Origin) -> ManifestEntry:
    try:
        return examine(partial.path, kind, url=origin.url, etag=origin.etag)
    except LampError as error:
        partial.discard()
        raise _AddressFailed(f"the response is not a {kind} file ({error})") from None


def _retry(url: str, partial: _Partial, source: DownloadSource, report: Callable[[int, int | None], None]) -> _Origin:
    """Repeats attempts at an address until the file is complete or `attempts` in a row received no new bytes."""
    furthest, failed, pause = _resumable(url, partial)[1], 0, source.pause
    while True:
        try:
            return _attempt(url, partial, source, report)
        except _AttemptFailed as error:
            failed, reached = failed + 1, _resumable(url, partial)[1]
            if reached > furthest:
                furthest, failed, pause = reached, 0, source.pause
            if failed >= source.attempts:
                raise _AddressFailed(f"{error} (given up after {failed} attempts without new bytes)") from None
        if source.stop.wait(pause):
            raise _Stopped
        pause = min(2 * pause, _MAX_PAUSE)


def _attempt(url: str, partial: _Partial, source: DownloadSource, report: Callable[[int, int | None], None]) -> _Origin:
    """Requests the missing bytes once, and keeps all that arrive. Returns the origin of a complete file."""
    origin, offset = _resumable(url, partial)
    if origin and offset == origin.size:
        return origin
    with _request(url, origin, offset=offset, timeout=source.timeout) as response:
        if response.status_code == 416 or (response.status_code == 206 and not _continues(response, origin, offset)):
            partial.discard()
            raise _AttemptFailed(f"HTTP {response.status_code}: the file has changed, its download starts again")
        _check_response(response)
        if origin is None or response.status_code == 200:
            origin, offset = _origin(url, response), 0
            partial.begin(origin)
        _receive(response, partial, source, lambda received: report(received, origin.size))
    if partial.size == 0:
        partial.discard()
        raise _AddressFailed("an empty file")
    if origin.size not in (None, partial.size):
        raise _AttemptFailed(f"the connection ended after {partial.size} of {origin.size} bytes")
    return origin


def _resumable(url: str, partial: _Partial) -> tuple[_Origin | None, int]:
    """Origin and number of the bytes that can be resumed at an address."""
    origin, size = partial.origin, partial.size
    if origin and origin.url == url and origin.validator and origin.size and 0 < size <= origin.size:
        return origin, size
    return None, 0


@contextlib.contextmanager
def _request(url: str, origin: _Origin | None, *, offset: int, timeout: float) -> "Iterator[requests.Response]":
    import requests  # imported here, because most commands need no network

    headers = {"Accept-Encoding": "identity"}  # otherwise sizes and ranges would be those of compressed bytes
    if origin and origin.validator:
        headers |= {"Range": f"bytes={offset}-", "If-Range": origin.validator}
    try:
        response = requests.get(url, headers=headers, timeout=timeout, stream=True)
    except requests.RequestException as error:
        raise _AttemptFailed(str(error)) from None
    with response:
        yield response


def _continues(response: "requests.Response", origin: _Origin | None, offset: int) -> bool:
    """Whether a partial response continues the same file exactly at `offset`. Some servers ignore If-Range."""
    span = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return (
        origin is not None
        and span is not None
        and (int(span[1]), int(span[2])) == (offset, origin.size)
        and response.headers.get("ETag", origin.etag) == origin.etag
        and response.headers.get("Last-Modified", origin.modified) == origin.modified
    )


def _check_response(response: "requests.Response") -> None:
    status, headers = response.status_code, response.headers
    if status in _TRANSIENT or status >= 500:
        raise _AttemptFailed(f"HTTP {status} {response.reason}")
    if status not in (200, 206):
        raise _AddressFailed(f"HTTP {status} {response.reason}")
    if headers.get("Content-Type", "").startswith("text/html"):
        raise _AddressFailed(_WEB_PAGE)
    if headers.get("Content-Encoding", "identity") != "identity":
        raise _AddressFailed(
            f"sends the file with the Content-Encoding {headers['Content-Encoding']}, which was not requested"
        )


def _origin(url: str, response: "requests.Response") -> _Origin:
    length = response.headers.get("Content-Length", "")
    size = int(length) if length.isdecimal() else None
    return _Origin(url, size, response.headers.get("ETag"), response.headers.get("Last-Modified"))


def _receive(
    response: "requests.Response", partial: _Partial, source: DownloadSource, report: Callable[[int], None]
) -> None:
    """Appends received bytes to the partial file immediately, so that a kill loses none."""
    with open(partial.path, "ab") as file:
        for chunk in _chunks(response):
            if source.stop.is_set():
                raise _Stopped
            if file.tell() == 0 and chunk.lstrip().startswith(b"<"):
                partial.discard()
                raise _AddressFailed(_WEB_PAGE)
            file.write(chunk)
            file.flush()
            report(file.tell())


def _chunks(response: "requests.Response") -> Iterator[bytes]:
    """Response body as it arrives. `iter_content` would drop the part of a chunk before a broken connection."""
    import urllib3

    try:
        while chunk := response.raw.read1(_CHUNK, decode_content=False):
            yield chunk
    except urllib3.exceptions.HTTPError as error:
        raise _AttemptFailed(str(error)) from None
