"""Work directories at URLs (`gs://bucket/run`): a stage works on a local copy, whose changes are sent there.

Through fsspec, so that any of its file systems will do; a bucket needs its package (gs:// needs gcsfs). Checkpoints are
not copied: orbax writes them where they belong, all hosts together.
"""

import dataclasses
import json
import os
import re
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

_copies: list["Copy"] = []


class Copy:
    """A local copy of what lies at a URL: a file with those that stand beside it by its name, or a directory."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._fs, self._remote = _open(self.url)
        self.local = _root() / self.url.replace("://", "/")
        self._sent: dict[Path, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Brings what is there, unless the same was brought before; what is not there any more goes here too."""
        notes = _root() / "fetched.json"
        known: dict[str, str] = json.loads(notes.read_text()) if notes.exists() else {}
        there = {self._at(remote): remote for remote in self._find()}
        for path in [path for path in self._files() if path not in there]:
            path.unlink()
        for path, remote in there.items():
            key = str(self._fs.ukey(remote))
            if known.get(str(path)) != key or not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(remote, str(path))
            known[str(path)] = key
            self._sent[path] = _state(path)
        notes.parent.mkdir(parents=True, exist_ok=True)
        notes.write_text(json.dumps(known))

    def send(self) -> None:
        """Sends what has changed since it was fetched or sent; removes there what was removed here."""
        here = {path: _state(path) for path in self._files()}
        for path, state in here.items():
            if self._sent.get(path) != state:
                self._fs.makedirs(os.path.dirname(self._there(path)), exist_ok=True)
                self._fs.put_file(str(path), self._there(path))
        for path in self._sent.keys() - here.keys():
            if self._fs.exists(self._there(path)):
                self._fs.rm_file(self._there(path))
        self._sent = here

    def remove(self) -> None:
        """Removes what lies at the URL, checkpoints included."""
        if self._fs.exists(self._remote):
            self._fs.rm(self._remote, recursive=True)

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
    """Sends what has changed. Before a checkpoint is written, so that none is newer than what belongs to it."""
    for copy in _copies if processes.is_first() else ():
        copy.send()


class Pace:
    """`publish`, but no more often than every half minute: for files that grow line by line."""

    def __init__(self):
        self._last = time.monotonic()

    def publish(self) -> None:
        if _copies and time.monotonic() - self._last > _PAUSE:
            publish()
            self._last = time.monotonic()


def remove(path: Path) -> None:
    """Removes what lies at the URL of which `path` is the copy, if it is one."""
    for copy in _copies:
        if copy.local == path:
            copy.remove()


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
    """Sends what has changed and forgets all copies."""
    try:
        publish()
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


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
