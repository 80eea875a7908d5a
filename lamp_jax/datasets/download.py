"""How the benchmark's files come from a server: resumed, checked, moved into place when whole, recorded."""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from lamp_jax.data.layout import Kind, TreeFile
from lamp_jax.datasets.manifest import DownloadManifest, Entry, examine
from lamp_jax.errors import LampError
from lamp_jax.runs.json_files import read_json, write_json

if TYPE_CHECKING:
    import requests

Report = Callable[[TreeFile, int, int | None], None]
"""Told of a file: the bytes that are there, and of how many (None where the server does not say)."""

_CHUNK = 2**18
_LONGEST_PAUSE = 10.0
_PATIENCE = 0.5
_PASSING = (408, 425, 429)  # client errors that another attempt may not meet
_WEB_PAGE = "sent a web page, which is not a file of the benchmark"
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


@dataclass(frozen=True)
class Source:
    """Where files come from: addresses in the order in which they are asked, and how patiently."""

    addresses: Sequence[str]
    attempts: int = 5
    timeout: float = 60.0
    pause: float = 0.5  # before the second attempt, in seconds; doubled with each that brings nothing
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Outcome:
    """What became of a file: whether bytes of it were fetched, what its user should read, and why it failed."""

    file: TreeFile
    fetched: bool = False
    lines: tuple[str, ...] = ()
    error: LampError | None = None


def download(
    files: Iterable[TreeFile], root: Path, *, source: Source, connections: int = 4, report: Report
) -> Generator[Outcome, None, None]:
    """Brings files into a tree, several at the same time; yields what became of each, in the order of their ends.

    What is recorded is not fetched again; a file that stands in its place unrecorded is checked and recorded. If the
    iteration ends early (Ctrl-C), partial files stay, from which the next call goes on. Raises LampError for a
    `download.json` that is none; what is wrong with a file is in its outcome.
    """
    waiting: SimpleQueue[TreeFile] = SimpleQueue()
    done: SimpleQueue[Outcome | BaseException] = SimpleQueue()
    manifest = DownloadManifest(root)
    for wanted in files:
        waiting.put(wanted)

    def work() -> None:
        while not source.stop.is_set():
            try:
                done.put(_bring(waiting.get_nowait(), root, source=source, manifest=manifest, report=report))
            except Empty:
                return
            except BaseException as error:  # for the caller's thread, which raises it
                done.put(error)

    count = waiting.qsize()
    # Daemons: after Ctrl-C nobody waits for a server that has fallen silent.
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


def _wait(done: "SimpleQueue[Outcome | BaseException]") -> Outcome | BaseException:
    while True:
        # Not without end: a signal that another thread received is seen between two waits.
        with contextlib.suppress(Empty):
            return done.get(timeout=_PATIENCE)


def _bring(file: TreeFile, root: Path, *, source: Source, manifest: DownloadManifest, report: Report) -> Outcome:
    path, known = root / file.path, manifest.find(file)
    try:
        if path.exists() and known:
            if path.stat().st_size == known.size:
                return Outcome(file)
            raise LampError(f"{path}: was changed after it came; remove it, and the same command fetches it again")
        if path.exists():
            entry, line = examine(path, file.kind), "stood there already: checked and recorded, not fetched"
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            entry = _fetch(file, path, source=source, report=report)
            line = f"{entry.records} records, {entry.size} bytes"
        manifest.record(file, entry)
    except LampError as error:
        return Outcome(file, error=error)
    except OSError as error:
        remedy = "make room or get permission there, and the same command goes on"
        return Outcome(file, error=LampError(f"{path}: cannot be read or written ({error}); {remedy}"))
    lines = [f"{file.path}: {line}"]
    if file.count not in (None, entry.records):
        lines.append(
            f"warning: {file.path} holds {entry.records} records, {file.count} were published; was it updated?"
        )
    return Outcome(file, fetched=entry.url is not None, lines=tuple(lines))


class _Broken(Exception):  # noqa: N818 (says what happened to a connection)
    """An attempt that failed; another may not."""


class _Refused(Exception):  # noqa: N818 (says what an address did)
    """An address that does not have the file, or does not give it."""


class _Stopped(Exception):  # noqa: N818 (as above)
    """The caller has no more use for the file now."""


@dataclass(frozen=True)
class _Origin:
    """The file at a server whose beginning a partial file is."""

    url: str
    size: int | None
    etag: str | None
    modified: str | None

    @property
    def validator(self) -> str | None:
        """What If-Range may name the file by; a weak ETag does not promise equal bytes (RFC 9110, 13.1.5)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class _Partial:
    """The bytes of a file that came so far, and in a small file beside them their origin."""

    def __init__(self, path: Path):
        self.path = path.with_name(f".{path.name}.part")
        self.note = path.with_name(f".{path.name}.part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def origin(self) -> _Origin | None:
        """None where no bytes are there, or nobody can say of what they are the beginning."""
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
        # In this order a kill in between leaves bytes without an origin, which are not used.
        self.note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def finish(self, path: Path) -> None:
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.path, path)
        self.note.unlink(missing_ok=True)


def _fetch(file: TreeFile, path: Path, *, source: Source, report: Report) -> Entry:
    """Fetches a file from the first address that has it. LampError with what each of them said."""
    partial, said = _Partial(path), []
    urls = [f"{address.rstrip('/')}/{file.path}" for address in source.addresses]
    begun = partial.origin
    # Bytes of one address are of no use at another, so the one where they came from goes on.
    for url in sorted(urls, key=lambda url: begun is None or url != begun.url):
        try:
            origin = _persist(url, partial, source, lambda have, size: report(file, have, size))
            entry = _examine_partial(partial, file.kind, origin)
        except _Refused as error:
            said.append(f"{url}: {error}")
        else:
            partial.finish(path)
            return entry
    remedy = "the same command tries again, --mirrors names others"
    raise LampError("\n  ".join([f"{file.path}: no address has it whole; {remedy}", *said]))


def _examine_partial(partial: _Partial, kind: Kind, origin: _Origin) -> Entry:
    try:
        return examine(partial.path, kind, url=origin.url, etag=origin.etag)
    except LampError as error:
        partial.discard()
        raise _Refused(f"what came is no {kind} file ({error})") from None


def _persist(url: str, partial: _Partial, source: Source, report: Callable[[int, int | None], None]) -> _Origin:
    """Asks an address again and again, until the file is there or `attempts` in a row have brought nothing new."""
    furthest, fruitless, pause = _resumable(url, partial)[1], 0, source.pause
    while True:
        try:
            return _attempt(url, partial, source, report)
        except _Broken as error:
            fruitless, reached = fruitless + 1, _resumable(url, partial)[1]
            if reached > furthest:
                furthest, fruitless, pause = reached, 0, source.pause
            if fruitless >= source.attempts:
                raise _Refused(f"{error} (given up after {fruitless} attempts without a new byte)") from None
        if source.stop.wait(pause):
            raise _Stopped
        pause = min(2 * pause, _LONGEST_PAUSE)


def _attempt(url: str, partial: _Partial, source: Source, report: Callable[[int, int | None], None]) -> _Origin:
    """Asks once for what is missing, and keeps whatever comes. Returns the origin of a file that has come whole."""
    origin, offset = _resumable(url, partial)
    if origin and offset == origin.size:
        return origin
    with _ask(url, origin, offset=offset, timeout=source.timeout) as response:
        if response.status_code == 416 or (response.status_code == 206 and not _continues(response, origin, offset)):
            partial.discard()
            raise _Broken(f"HTTP {response.status_code}: the file has changed, it is begun again")
        _check_answer(response)
        if origin is None or response.status_code == 200:
            origin, offset = _origin(url, response), 0
            partial.begin(origin)
        _receive(response, partial, source, lambda have: report(have, origin.size))
    if partial.size == 0:
        partial.discard()
        raise _Refused("an empty file")
    if origin.size not in (None, partial.size):
        raise _Broken(f"the connection ended after {partial.size} of {origin.size} bytes")
    return origin


def _resumable(url: str, partial: _Partial) -> tuple[_Origin | None, int]:
    """The origin of the bytes that an address can go on from, and how many they are."""
    origin, size = partial.origin, partial.size
    if origin and origin.url == url and origin.validator and origin.size and 0 < size <= origin.size:
        return origin, size
    return None, 0


@contextlib.contextmanager
def _ask(url: str, origin: _Origin | None, *, offset: int, timeout: float) -> "Iterator[requests.Response]":
    import requests  # here, not above: most of lamp needs no network

    headers = {"Accept-Encoding": "identity"}  # or sizes and ranges would be those of compressed bytes
    if origin and origin.validator:
        headers |= {"Range": f"bytes={offset}-", "If-Range": origin.validator}
    try:
        response = requests.get(url, headers=headers, timeout=timeout, stream=True)
    except requests.RequestException as error:
        raise _Broken(str(error)) from None
    with response:
        yield response


def _continues(response: "requests.Response", origin: _Origin | None, offset: int) -> bool:
    """Whether a partial answer goes on exactly where the bytes of the same file end. Some servers ignore If-Range."""
    span = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return (
        origin is not None
        and span is not None
        and (int(span[1]), int(span[2])) == (offset, origin.size)
        and response.headers.get("ETag", origin.etag) == origin.etag
        and response.headers.get("Last-Modified", origin.modified) == origin.modified
    )


def _check_answer(response: "requests.Response") -> None:
    status, headers = response.status_code, response.headers
    if status in _PASSING or status >= 500:
        raise _Broken(f"HTTP {status} {response.reason}")
    if status not in (200, 206):
        raise _Refused(f"HTTP {status} {response.reason}")
    if headers.get("Content-Type", "").startswith("text/html"):
        raise _Refused(_WEB_PAGE)
    if headers.get("Content-Encoding", "identity") != "identity":
        raise _Refused(f"sends the file as {headers['Content-Encoding']}, which nobody asked for")


def _origin(url: str, response: "requests.Response") -> _Origin:
    length = response.headers.get("Content-Length", "")
    size = int(length) if length.isdecimal() else None
    return _Origin(url, size, response.headers.get("ETag"), response.headers.get("Last-Modified"))


def _receive(response: "requests.Response", partial: _Partial, source: Source, report: Callable[[int], None]) -> None:
    """Appends what comes to the partial file, each piece at once, so that a kill loses none."""
    with open(partial.path, "ab") as file:
        for chunk in _chunks(response):
            if source.stop.is_set():
                raise _Stopped
            if file.tell() == 0 and chunk.lstrip().startswith(b"<"):
                partial.discard()
                raise _Refused(_WEB_PAGE)
            file.write(chunk)
            file.flush()
            report(file.tell())


def _chunks(response: "requests.Response") -> Iterator[bytes]:
    """A body as it arrives. `iter_content` would drop what came of a piece before the connection broke."""
    import urllib3

    try:
        while chunk := response.raw.read1(_CHUNK, decode_content=False):
            yield chunk
    except urllib3.exceptions.HTTPError as error:
        raise _Broken(str(error)) from None
