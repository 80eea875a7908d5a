"""Work directories at URLs (`gs://bucket/run`): a stage works on a local copy, whose changes are sent there.

Through fsspec, so that any of its file systems will do; a bucket needs its package (gs:// needs gcsfs). Checkpoints are
not copied: orbax writes them where they belong, all hosts together.
"""

import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lamp_jax import processes
from lamp_jax.errors import LampError

CHECKPOINTS = "checkpoints"
_URL = re.compile(r"^(?P<name>[\w.-]+=)?(?P<url>(?!https?:)[a-z][a-z0-9]*://.+)$")
_NATIVE = ("gs://", "s3://", "file://")  # where orbax can write
_PAUSE = 30.0  # seconds between looks at what a growing file has gained
_LITTLE, _SHARE = 2**26, 0.25  # bytes that are sent whenever they changed; growth of more that pays for sending it

_copies: list["Copy"] = []


class Copy:
    """A local copy of what lies at a URL: a file with those that stand beside it by its name, or a directory."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._fs, self._remote = _open(self.url)
        self.local = _root() / self.url.replace("://", "/")
        self._sent: dict[Path, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Brings what is there, unless the same was brought or sent before; what is not there any more goes here too.

        Where nothing has changed there, what a killed command had not sent yet is still here, and is sent later.
        """
        known = _read_notes()
        there = {self._at(remote): remote for remote in self._find()}
        for path in [path for path in self._files() if path not in there]:
            path.unlink()
        for path, remote in there.items():
            key, state = str(self._fs.ukey(remote)), known.get(str(path), ("",))
            if key != state[0] or not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(remote, str(path))
                state = (key, *_state(path))
            known[str(path)], self._sent[path] = state, (state[1], state[2])
        _write_notes(known)

    def send(self) -> None:
        """Sends what has changed since it was fetched or sent; removes there what was removed here.

        What was written first goes first, so that numbers are there before the lines that count on them.
        """
        here = self._states()
        for path in sorted(here, key=lambda path: (here[path][1], path.suffix == ".jsonl")):  # clocks are coarse
            if self._sent.get(path) != here[path]:
                self._fs.makedirs(os.path.dirname(self._there(path)), exist_ok=True)
                self._fs.put_file(str(path), self._there(path))
                _write_notes(_read_notes() | {str(path): (str(self._fs.ukey(self._there(path))), *here[path])})
                self._sent[path] = here[path]
        for path in self._sent.keys() - here.keys():
            if self._fs.exists(self._there(path)):
                self._fs.rm_file(self._there(path))
        self._sent = here

    def pays(self) -> bool:
        """Whether what has changed is worth sending: all of it, for objects in a bucket cannot be appended to.

        Files that have only grown wait, unless they are small, until they have grown by a quarter: so all that is sent
        of them is a few times their last size. They wait together, because one may count on another.
        """
        here = self._states()
        changed = [path for path, state in here.items() if self._sent.get(path) != state]
        size, before = (sum(of[path][0] for path in changed if path in of) for of in (here, self._sent))
        grown = all(path in self._sent and here[path][0] > self._sent[path][0] for path in changed)
        return not grown or self._sent.keys() > here.keys() or size <= _LITTLE or size - before >= _SHARE * before

    def remove(self, part: str = "") -> None:
        """Removes what lies at the URL, checkpoints included, or one directory of it."""
        place = f"{self._remote}/{part}".rstrip("/")
        self._fs.invalidate_cache()  # checkpoints are not written through it
        if self._fs.exists(place):
            self._fs.rm(place, recursive=True)

    def move(self, source: str, target: str) -> None:
        """Moves a directory at the URL, in place of another; nothing where the source is not there."""
        self._fs.invalidate_cache()  # checkpoints are not written through it
        if self._fs.exists(f"{self._remote}/{source}"):
            self.remove(target)
            self._fs.mv(f"{self._remote}/{source}", f"{self._remote}/{target}", recursive=True)

    def _states(self) -> dict[Path, tuple[int, int]]:
        return {path: _state(path) for path in self._files()}

    def _files(self) -> Iterator[Path]:
        beside = self.local.parent.glob(f"{self.local.stem}.*") if self.local.parent.exists() else ()
        for path in [*beside, *self.local.rglob("*")]:
            inside = path.relative_to(self.local.parent).parts
            if path.is_file() and not any(part.startswith(".") or part == CHECKPOINTS for part in inside):
                yield path

    def _find(self) -> Iterator[str]:
        folder, name = os.path.split(self._remote)
        beside = self._fs.glob(f"{folder}/{Path(name).stem}.*")
        inside = self._fs.find(self._remote) if self._fs.isdir(self._remote) else []
        for remote in [*beside, *inside]:
            parts = remote.removeprefix(folder).split("/")
            if self._fs.isfile(remote) and CHECKPOINTS not in parts:
                yield remote

    def _at(self, remote: str) -> Path:
        return self.local.parent / remote.removeprefix(os.path.dirname(self._remote)).lstrip("/")

    def _there(self, path: Path) -> str:
        return f"{os.path.dirname(self._remote)}/{path.relative_to(self.local.parent).as_posix()}"


def bring(options: Any) -> Any:
    """The options with a local copy's path for each URL; what lies there has been fetched.

    LampError where a file system's package is missing, or the place cannot be reached.
    """

    def local(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(local(one) for one in value)
        found = _URL.match(value) if isinstance(value, str) else None
        return f"{found['name'] or ''}{_copy(found['url'])}" if found else value

    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return dataclasses.replace(options, **{name: local(value) for name, value in values.items()})


def publish() -> None:
    """Sends what has changed, where that pays. Before a checkpoint, so that none is newer than what belongs to it.

    A store of adapters that waits is older than a checkpoint of its run: users that it lacks are then trained again.
    """
    for copy in _copies if processes.is_first() else ():
        if copy.pays():
            copy.send()


class Pace:
    """`publish`, but no more often than every half minute: for files that grow line by line."""

    def __init__(self):
        self._last = time.monotonic()

    def publish(self) -> None:
        if _copies and time.monotonic() - self._last > _PAUSE:
            publish()
            self._last = time.monotonic()


def remove_checkpoints(output: Path) -> None:
    """Removes the checkpoints of a run's directory, here or at its URL; none is no error."""
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    for copy in _copies:
        if output.is_relative_to(copy.local):
            copy.remove((output / CHECKPOINTS).relative_to(copy.local).as_posix())


def move_checkpoints(source: Path, target: Path) -> None:
    """Moves the checkpoints of one run's directory to another of the same copy, at its URL. Local ones stay.

    Those that are at the target give way. None at the source is no error: they may have been moved before.
    """
    for copy in _copies:
        if source.is_relative_to(copy.local) and target.is_relative_to(copy.local):
            places = [(path / CHECKPOINTS).relative_to(copy.local).as_posix() for path in (source, target)]
            copy.move(*places)


def checkpoint_place(path: Path) -> str:
    """Where a run's checkpoints belong: at its URL, or where it says. LampError for a URL that is none of orbax's."""
    for copy in _copies:
        if path.is_relative_to(copy.local):
            if not copy.url.startswith(_NATIVE):
                known = ", ".join(_NATIVE)
                raise LampError(f"{copy.url}: checkpoints can be written to {known} only; give another --output")
            return f"{copy.url.removeprefix('file://')}/{path.relative_to(copy.local).as_posix()}"
    return str(path.absolute())


def leave() -> None:
    """Sends all that has changed and forgets all copies."""
    try:
        for copy in _copies if processes.is_first() else ():
            copy.send()
    finally:
        _copies.clear()


def _copy(url: str) -> Path:
    copy = Copy(url)
    copy.fetch()
    _copies.append(copy)
    return copy.local


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.url_to_fs(url)
    except ImportError as error:
        raise LampError(f"{url}: {error}; for gs://: pip install -e '.[gcs]'") from None
    except ValueError as error:
        raise LampError(f"{url}: {error}; give a local path, or a URL such as gs://BUCKET/run") from None


def _root() -> Path:
    """Each process of this machine has copies of its own."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "lamp" / "remote" / str(processes.index())


def _read_notes() -> dict[str, Any]:
    """Of each copied file a key that changes when the URL's does, and the state of the copy that is equal to it."""
    notes = _root() / "fetched.json"
    return json.loads(notes.read_text()) if notes.exists() else {}


def _write_notes(known: dict[str, Any]) -> None:
    unfinished = _root() / f".fetched.{os.getpid()}.unfinished"
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    unfinished.write_text(json.dumps(known))
    os.replace(unfinished, _root() / "fetched.json")


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
