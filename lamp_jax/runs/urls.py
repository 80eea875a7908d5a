"""Normalized URLs of files and directories, and paths of their local copies.

A copy has its own folder, with all files that belong to it by name: the copy of `gs://b/runs/p.json`, which a command
writes, is `~/.cache/lamp/remote/0/written/gs/b/runs/::p.json/p.json`. No part of a URL contains `::`.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

from lamp_jax.errors import LampError
from lamp_jax.runs import processes

READ, WRITTEN = "read", "written"

_URL = re.compile(r"(?:(?P<name>[\w.-]+)=)?(?P<scheme>(?!https?:)[a-z][a-z0-9]*)://(?P<path>.*)", re.I | re.S)
_LOCAL = ("file", "local")
_SPELLINGS = {"gcs": "gs", "s3a": "s3", "s3n": "s3"}
_WITHOUT_HOST = {"memory"}  # file systems whose URLs do not begin with a bucket or host
_MARK = "::"


def split_url(text: str) -> tuple[str, str] | None:
    """`NAME=` ("" where there is none) and the normalized URL; for `file://` the local path. None: not a URL.

    LampError for a URL that does not name a file or directory: a relative one, one with `..`, a complete file system.
    """
    found = _URL.fullmatch(text)
    if not found:
        return None
    name = f"{found['name']}=" if found["name"] else ""
    return name, _normalize(text.removeprefix(name), found["scheme"].lower(), found["path"])


def _normalize(url: str, scheme: str, path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if _MARK in path:
        raise LampError(f"{url}: a chain of file systems; copy the file, and give its own path or URL")
    if ".." in parts:
        raise LampError(f"{url}: '..' in a URL; give the URL without '..'")
    if scheme in _LOCAL:
        if not path.startswith("/"):
            raise LampError(f"{url}: a relative path; give {scheme}:///DIRECTORY/NAME, or the path without {scheme}://")
        if not parts:
            raise LampError(f"{url}: the complete file system; give a directory or a file in it")
        return "/" + "/".join(parts)
    scheme = _SPELLINGS.get(scheme, scheme)
    if len(parts) < (1 if scheme in _WITHOUT_HOST else 2):
        raise LampError(f"{url}: a complete bucket or file system; give a directory or a file in it: {scheme}://A/B")
    return f"{scheme}://{'/'.join(parts)}"


def is_url(text: str) -> bool:
    return "://" in text


def copies_root() -> Path:
    """Directory of all copies; each process of this machine has its own below it."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.path.realpath(cache), "lamp", "remote")


def copy_path(url: str, kind: str, shard: str = "") -> Path:
    """Path of the copy of a normalized URL. `shard` separates commands that write to one directory."""
    scheme, _, path = url.partition("://")
    *above, name = path.split("/")
    kind = f"{kind}-{shard}" if shard else kind
    return copies_root().joinpath(str(processes.index()), kind, scheme, *above, f"{_MARK}{name}", name)


def url_of(path: str | Path, *kinds: str) -> str | None:
    """URL of a path inside a copy of these kinds (none given: of any kind); None for other paths."""
    absolute, root = PurePosixPath(os.path.abspath(path)), copies_root()
    if not absolute.is_relative_to(root):
        return None
    _, kind, scheme, *parts = (*absolute.relative_to(root).parts, "", "", "")
    folder = next((index for index, part in enumerate(parts) if part.startswith(_MARK)), len(parts))
    parts = [part for part in parts[:folder] + parts[folder + 1 :] if part]
    return f"{scheme}://{'/'.join(parts)}" if parts and kind.partition("-")[0] in (kinds or (READ, WRITTEN)) else None


def is_private(name: str) -> bool:
    """Whether a file of a copy's folder is its bookkeeping, which belongs to no URL."""
    return name.startswith(f".{_MARK}")


def private_path(folder: Path, name: str) -> Path:
    return folder / f".{_MARK}{name}"


def with_urls(value: Any) -> Any:
    """A text, or a tree of lists and mappings of texts, with the paths of copies replaced by their URLs."""
    if isinstance(value, str):
        if "/lamp/remote/" not in value:
            return value
        start = rf"{re.escape(str(copies_root()))}/\d+/(?:{READ}|{WRITTEN})(?:-\d+)?/([a-z][a-z0-9]*)/"
        return re.sub(rf"{start}((?:[^/\n]+/)*?){_MARK}[^/\n]*/", r"\1://\2", value)
    if isinstance(value, Mapping):
        return {with_urls(key): with_urls(member) for key, member in value.items()}
    return [with_urls(member) for member in value] if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def naming_urls() -> Iterator[None]:
    """Context in which printed paths of copies are replaced by their URLs."""
    out, err = (cast(Any, _NamingUrls(stream)) for stream in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


class _NamingUrls:
    """Wrapper of a stream that replaces paths of copies by their URLs in what is written."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(with_urls(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
