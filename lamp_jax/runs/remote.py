"""Work directories at URLs (`gs://bucket/run`): a stage works on a local copy, whose changes are sent to the URL.

Only outputs are sent; inputs are never changed. `file://` URLs are local paths, without a copy. Any file system of
fsspec works; a bucket needs its package (gs:// needs gcsfs). Checkpoints are not copied: orbax writes them to the URL,
all hosts together.
"""

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from lamp_jax.errors import LampError
from lamp_jax.runs import processes
from lamp_jax.runs.copies import CHECKPOINTS, LocalCopy
from lamp_jax.runs.filesystems import naming_url, open_url, remove_tree, walk
from lamp_jax.runs.urls import READ, WRITTEN, is_url, split_url, url_of

INPUTS = frozenset({"adapters", "all", "archives", "data", "directory", "encoder", "feedback", "files", "golds"})
INPUTS |= {"golds_zip", "histories", "ids", "join", "merged", "model", "outputs", "pool", "predictions"}
INPUTS |= {"predictions_zip", "questions", "ranking", "rankings", "scores", "selector", "store", "tokenizer", "train"}
INPUTS |= {"validation", "validation_feedback"}
"""Options, of any stage, that name inputs; without those in OUTPUTS."""
OUTPUTS = frozenset({"output", "embeddings_cache", "export_reference", "Rank.scores", "ImportAdapter.store"})
"""Options that name outputs; `STAGE.OPTION` where the same option of another stage names an input."""

_NATIVE = ("gs://", "s3://")  # where orbax can write
_PAUSE = 30.0  # seconds between two checks of a growing file
_copies: list[LocalCopy] = []


def fetch_urls(options: Any) -> Any:
    """The options with each URL replaced by the path of its local copy, which has been fetched.

    LampError, on all processes, where a file system's package is missing or a URL cannot be reached.
    """
    stage, shards = type(options).__name__, getattr(options, "shards", 1)
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    shard = str(options.shard) if shards > 1 else ""
    kinds = {
        name: WRITTEN if {name, f"{stage}.{name}"} & OUTPUTS else READ
        for name in values
        if {name, f"{stage}.{name}"} & (OUTPUTS | INPUTS)
    }

    for name in kinds:  # every URL is checked before anything is fetched
        values[name] = _map_urls(values[name], lambda url: url, name)

    def fetch() -> str:
        for name, kind in kinds.items():
            values[name] = _map_urls(values[name], partial(_copy, kind=kind, shard=shard), name)
        return ""

    processes.assert_equal("work directories at URLs", fetch)
    return dataclasses.replace(options, **{name: values[name] for name in kinds})


def fetch_input(name: str) -> str:
    """Path of a URL's local copy for reading; other names unchanged."""
    return _map_urls(name, partial(_copy, kind=READ, shard=""), "")


def _map_urls(value: Any, function: Callable[[str], str], option: str) -> Any:
    """An option's value with `function` applied to each URL in it; `file://` URLs become local paths."""
    if isinstance(value, tuple):
        return tuple(_map_urls(member, function, option) for member in value)
    column = ""
    if isinstance(value, str) and option == "join":  # FILE:COLUMN
        value, colon, name = value.rpartition(":")
        column = colon + name
    found = split_url(value) if isinstance(value, str) else None
    if found:
        name, location = found
        value = name + (function(location) if is_url(location) else location)
    return value + column if column else value


def publish() -> None:
    """Sends changed files where that is worthwhile. Called before a checkpoint, which must not be newer than its files.

    An adapter store that was held back is older than the checkpoint of its run: users that it lacks are trained again.
    """
    for copy in _written_copies():
        if copy.is_worth_sending():
            copy.send()


class PublishThrottle:
    """`publish` at most every 30 seconds, for files that grow line by line."""

    def __init__(self):
        self._last = time.monotonic()

    def publish(self) -> None:
        if _copies and time.monotonic() - self._last > _PAUSE:
            publish()
            self._last = time.monotonic()


def check_apart(written: Iterable[Path], inputs: Iterable[str]) -> None:
    """Raises LampError if the URL of an output is that of an input, or one of them is below the other."""
    outputs = [url for path in written if (url := url_of(path))]
    for url in filter(None, map(url_of, inputs)):
        for output in outputs:
            if output == url:
                raise LampError(f"{output}: is also an input; give another output")
            if url.startswith(f"{output}/"):
                raise LampError(f"{output}: contains the input {url}; give an output that is not above an input")
            if output.startswith(f"{url}/"):
                raise LampError(f"{output}: is inside the input {url}; give an output outside of it")


def remove_checkpoints(output: Path) -> None:
    """Removes the checkpoints of a run's directory, locally or at its URL, if there are any."""
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    if url := url_of(output / CHECKPOINTS, WRITTEN):
        with naming_url(url, "removed"):
            remove_tree(*open_url(url))


def move_checkpoints(source: Path, target: Path) -> None:
    """Moves the checkpoints of one run's directory to another of the same copy, at its URL. Local ones are not moved.

    Existing ones at the target are replaced. An empty source is not an error: they may have been moved before.
    """
    before, after = (url_of(path / CHECKPOINTS, WRITTEN) for path in (source, target))
    if not (before and after):
        return
    with naming_url(after, "written"):
        (fs, old), (_, new) = open_url(before), open_url(after)
        fs.invalidate_cache()  # checkpoints are not written through it
        if found := list(walk(fs, old)):
            remove_tree(fs, new)
            for remote in found:
                moved = new + remote.removeprefix(old)
                fs.makedirs(os.path.dirname(moved), exist_ok=True)
                fs.cp_file(remote, moved)
            remove_tree(fs, old)


def checkpoint_location(path: Path) -> str:
    """URL or path of a run's checkpoints. LampError for a URL that orbax cannot write to."""
    url = url_of(path, WRITTEN)
    if url and not url.startswith(_NATIVE):
        known = ", ".join(_NATIVE)
        raise LampError(f"{url}: checkpoints can be written to {known} only; give another --output")
    return url or str(path.absolute())


def send_and_forget() -> None:
    """Sends all changed files, then unlocks and forgets all copies. LampError where a file could not be sent."""
    errors = []
    try:
        for copy in _written_copies():
            try:
                copy.send()
            except LampError as error:
                errors.append(str(error))
    finally:
        for copy in _copies:
            copy.release()
        _copies.clear()
    if errors:
        raise LampError("\n".join(errors))


def _written_copies() -> list[LocalCopy]:
    return [copy for copy in _copies if copy.kind == WRITTEN] if processes.is_first() else []


def _copy(url: str, *, kind: str, shard: str) -> str:
    for copy in _copies:
        if (copy.url, copy.kind) == (url, kind):
            return str(copy.local)
    copy = LocalCopy(url, kind, shard if kind == WRITTEN else "")
    copy.fetch()
    _copies.append(copy)
    return str(copy.local)
