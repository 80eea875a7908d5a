"""URLs of files and directories in one spelling, and where this machine keeps copies of what lies there.

A copy has a folder of its own, with all files that lie beside it by its name: `gs://b/runs/p.json`, which a command
writes, is `~/.cache/lamp/remote/0/written/gs/b/runs/::p.json/p.json`. No part of a URL holds `::`.
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

_URL = re.compile(r"(?:(?P<name>[\w.-]+)=)?(?P<scheme>(?!https?:)[a-z][a-z0-9]*)://(?P<place>.*)", re.I | re.S)
_LOCAL = ("file", "local")
_SPELLINGS = {"gcs": "gs", "s3a": "s3", "s3n": "s3"}
_WITHOUT_HOST = {"memory"}  # file systems whose URLs begin with no bucket, host or the like
_MARK = "::"


def split_url(text: str) -> tuple[str, str] | None:
    """`NAME=` ("" where there is none) and the URL in its one spelling; for `file://` the local path. None: no URL.

    LampError for a URL that names no one file or directory: a relative one, one with `..`, a complete file system.
    """
    found = _URL.fullmatch(text)
    if not found:
        return None
    name = f"{found['name']}=" if found["name"] else ""
    return name, _one_spelling(text.removeprefix(name), found["scheme"].lower(), found["place"])


def _one_spelling(url: str, scheme: str, place: str) -> str:
    parts = [part for part in place.split("/") if part not in ("", ".")]
    if _MARK in place:
        raise LampError(f"{url}: a chain of file systems; copy the file, and give its own path or URL")
    if ".." in parts:
        raise LampError(f"{url}: '..' in a URL; give the URL of the place itself")
    if scheme in _LOCAL:
        if not place.startswith("/"):
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
    """Each process of this machine has copies of its own."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.path.realpath(cache), "lamp", "remote")


def copy_path(url: str, kind: str, part: str = "") -> Path:
    """Where the copy of a URL in its one spelling lies. `part` tells apart commands that write to one directory."""
    scheme, _, place = url.partition("://")
    *above, name = place.split("/")
    kind = f"{kind}-{part}" if part else kind
    return copies_root().joinpath(str(processes.index()), kind, scheme, *above, f"{_MARK}{name}", name)


def url_of(path: str | Path, *kinds: str) -> str | None:
    """The URL of which a path is in a copy of these kinds (none given: of any); None for other paths."""
    place, root = PurePosixPath(os.path.abspath(path)), copies_root()
    if not place.is_relative_to(root):
        return None
    _, kind, scheme, *parts = (*place.relative_to(root).parts, "", "", "")
    folder = next((place for place, part in enumerate(parts) if part.startswith(_MARK)), len(parts))
    parts = [part for part in parts[:folder] + parts[folder + 1 :] if part]
    return f"{scheme}://{'/'.join(parts)}" if parts and kind.partition("-")[0] in (kinds or (READ, WRITTEN)) else None


def is_private(name: str) -> bool:
    """Whether a file of a copy's folder is the copy's own and belongs to no URL."""
    return name.startswith(f".{_MARK}")


def private_path(folder: Path, name: str) -> Path:
    return folder / f".{_MARK}{name}"


def with_urls(value: Any) -> Any:
    """A text, or a tree of lists and mappings with texts, with URLs in place of the paths of their copies."""
    if isinstance(value, str):
        if "/lamp/remote/" not in value:
            return value
        start = rf"{re.escape(str(copies_root()))}/\d+/(?:{READ}|{WRITTEN})(?:-\d+)?/([a-z][a-z0-9]*)/"
        return re.sub(rf"{start}((?:[^/\n]+/)*?){_MARK}[^/\n]*/", r"\1://\2", value)
    if isinstance(value, Mapping):
        return {with_urls(key): with_urls(one) for key, one in value.items()}
    return [with_urls(one) for one in value] if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def naming_urls() -> Iterator[None]:
    """What is printed while the block runs names URLs in place of the paths of their copies."""
    out, err = (cast(Any, _NamingUrls(stream)) for stream in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


class _NamingUrls:
    """A stream of which all but its texts is another's."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(with_urls(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
