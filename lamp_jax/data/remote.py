"""Work directories at URLs (`gs://bucket/run`): a stage works on a local copy, whose changes are sent there.

Only what a command writes is sent; of its inputs nothing is ever changed. `file://` URLs are local paths, without a
copy. Through fsspec, so that any of its file systems will do; a bucket needs its package (gs:// needs gcsfs).
Checkpoints are not copied: orbax writes them where they belong, all hosts together.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from lamp_jax import processes
from lamp_jax.data.urls import (
    READ,
    WRITTEN,
    copy_path,
    is_private,
    is_url,
    private_path,
    split_url,
    url_of,
)
from lamp_jax.errors import LampError

CHECKPOINTS = "checkpoints"
INPUTS = frozenset({"adapters", "all", "archives", "data", "directory", "encoder", "feedback", "files", "golds"})
INPUTS |= {"golds_zip", "histories", "ids", "join", "merged", "model", "outputs", "pool", "predictions"}
INPUTS |= {"predictions_zip", "questions", "ranking", "rankings", "scores", "selector", "store", "tokenizer", "train"}
INPUTS |= {"validation", "validation_feedback"}
"""Options, of whatever stage, that name what is read; without those of OUTPUTS."""
OUTPUTS = frozenset({"output", "embeddings_cache", "export_reference", "Rank.scores", "ImportAdapter.store"})
"""Options that name what is written; `STAGE.OPTION` where another stage reads what the same option names."""

_NATIVE = ("gs://", "s3://")  # where orbax can write
_PAUSE = 30.0  # seconds between looks at what a growing file has gained
_LITTLE, _SHARE = 2**26, 0.25  # bytes that are sent whenever they changed; growth of more that pays for sending it
_TEMPORARY = re.compile(r"\.(.+\.(\d+|[a-z0-9_]{8})|building)\.unfinished|\.(.+\.)?lamp\.lock(-\d+)?")
"""Names of files that are renamed or removed when they are complete, and of locks; see `outputs`."""
_PACKAGES = {"gs": "-e '.[gcs]'", "s3": "s3fs", "ssh": "paramiko", "sftp": "paramiko"}
_PACKAGES |= dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs")

_copies: list["Copy"] = []


class Copy:
    """A local copy of what lies at a URL: a file with those that belong to it by its name, or a directory."""

    def __init__(self, url: str, kind: str, part: str = ""):
        self.url, self.kind = url, kind
        self._fs, self._remote = _open(url)
        self.local = copy_path(url, kind, part)
        self._folder = self.local.parent
        self._lock: IO[bytes] | None = None
        self._sent: dict[Path, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Brings what is there, unless the same was brought or sent before; what is not there any more goes here too.

        Where nothing has changed there, what a killed command had not sent yet is still here, and is sent later. What
        is written is held by this command from now on until `release`: LampError where another one has it.
        """
        with _naming(self.url, "read"), contextlib.ExitStack() as stack:
            self._hold()
            stack.callback(self.release)
            self._fs.invalidate_cache()
            there = {self._here(remote): remote for remote in self._find()}
            keys, known = {path: str(self._fs.ukey(remote)) for path, remote in there.items()}, self._read_notes()
            unchanged = bool(known) and keys == {path: note[0] for path, note in known.items()}
            if unchanged and self.kind == WRITTEN and all(path.exists() for path in known):
                self._sent = {path: (note[1], note[2]) for path, note in known.items()}
            else:
                self._replace(there, keys, known)
            if self.kind == WRITTEN:
                stack.pop_all()

    def _replace(self, there: dict[Path, str], keys: dict[Path, str], known: dict[Path, list[Any]]) -> None:
        """Makes the copy equal to what is at the URL."""
        for path in [path for path in self._files() if path not in there]:
            path.unlink()
        for path, remote in there.items():
            note = known.get(path, ["", 0, 0])
            if keys[path] != note[0] or not path.is_file() or _state(path) != (note[1], note[2]):
                _make_room(path, self._folder)
                unfinished = private_path(self._folder, "part")
                self._fs.get_file(remote, str(unfinished))
                os.replace(unfinished, path)
                note = [keys[path], *_state(path)]
            known[path], self._sent[path] = note, (note[1], note[2])
        self._write_notes({path: known[path] for path in there})

    def send(self) -> None:
        """Sends what has changed since it was fetched or sent; removes there what was removed here.

        What was written first goes first, so that numbers are there before the lines that count on them.
        """
        with _naming(self.url, "written", "; the same command sends what is missing"):
            here = self._states()
            for path in sorted(here, key=lambda path: (here[path][1], path.suffix == ".jsonl")):  # clocks are coarse
                if self._sent.get(path) != here[path]:
                    self._put(path, here[path])
            for path in self._sent.keys() - here.keys():
                self._check_held()
                if self._fs.exists(self._there(path)):
                    self._fs.rm_file(self._there(path))
            self._sent = here
            self._write_notes({path: note for path, note in self._read_notes().items() if path in here})

    def _put(self, path: Path, state: tuple[int, int]) -> None:
        there = self._there(path)
        self._fs.makedirs(os.path.dirname(there), exist_ok=True)
        self._fs.put_file(str(path), there)
        self._fs.invalidate_cache()
        size = self._fs.info(there)["size"]
        if size != state[0]:
            raise LampError(f"{url_of(path)}: {size} of {state[0]} bytes have arrived; give the command again")
        self._write_notes(self._read_notes() | {path: [str(self._fs.ukey(there)), *state]})
        self._sent[path] = state

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

    def release(self) -> None:
        """Lets other commands of this machine have the copy."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def _hold(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(private_path(self._folder, "lock"), "ab")  # noqa: SIM115 (open for as long as it is locked)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if self.kind == WRITTEN else 0))
        except BlockingIOError:
            self.release()
            raise LampError(
                f"{self.url}: another lamp command of this machine is writing to it; wait until it ends, or stop it"
            ) from None
        except OSError:
            pass  # a network file system without locks

    def _check_held(self) -> None:
        """LampError where somebody removed the copy: nothing that is missing in it may be removed at the URL."""
        with contextlib.suppress(FileNotFoundError):
            if self._lock and os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self._lock.name)):
                return
        raise LampError(f"{self.url}: its copy in {self._folder} was removed meanwhile; give the command again")

    def _states(self) -> dict[Path, tuple[int, int]]:
        return {path: _state(path) for path in self._files()}

    def _files(self) -> Iterator[Path]:
        for path in self._folder.rglob("*"):
            if path.is_file() and self._belongs(path):
                yield path

    def _find(self) -> Iterator[str]:
        """The files that are at the URL, and of what is written those beside it that a stage may read or write."""
        places, name = [self._remote], self.local.name
        if self.kind == WRITTEN and _kind_of(self._fs, self._remote) != "directory":
            ends = ("", ".run.json", ".journal.jsonl")
            beside = [f"{name}{staged}{end}" for staged in ("", ".unfinished") for end in ends]
            beside += [Path(name).with_suffix(".scores.json").name + end for end in ("", ".unfinished")]
            places = [self._there(self._folder / one) for one in dict.fromkeys(beside)]
        for place in places:
            for remote in _walk(self._fs, place):
                if self._belongs(self._here(remote)):
                    yield remote

    def _belongs(self, path: Path) -> bool:
        """Whether a file of the copy's folder is one of the URL's: no checkpoint and nothing temporary."""
        parts = path.relative_to(self._folder).parts
        others = parts[1:] if parts[0] == self.local.name else parts
        return not (
            is_private(parts[0])
            or CHECKPOINTS in parts[1:-1]
            or (self.kind == WRITTEN and any(_TEMPORARY.fullmatch(part) for part in others))
        )

    def _here(self, remote: str) -> Path:
        return self._folder / remote.removeprefix(self._remote.rpartition("/")[0]).lstrip("/")

    def _there(self, path: Path) -> str:
        return f"{self._remote.rpartition('/')[0]}/{path.relative_to(self._folder).as_posix()}"

    def _read_notes(self) -> dict[Path, list[Any]]:
        """Of each file a key that changes when the URL's does, and the state of the copy that is equal to it."""
        notes = private_path(self._folder, "fetched.json")
        known = json.loads(notes.read_text()) if notes.exists() else {}
        return {self._folder / name: note for name, note in known.items()}

    def _write_notes(self, known: dict[Path, list[Any]]) -> None:
        named = {path.relative_to(self._folder).as_posix(): note for path, note in known.items()}
        unfinished = private_path(self._folder, "fetched.unfinished")
        unfinished.write_text(json.dumps(named))
        os.replace(unfinished, private_path(self._folder, "fetched.json"))


def bring(options: Any) -> Any:
    """The options with a local copy's path for each URL; what lies there has been fetched.

    LampError, in all processes, where a file system's package is missing, or a place cannot be reached.
    """
    stage, shards = type(options).__name__, getattr(options, "shards", 1)
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    part = str(options.shard) if shards > 1 else ""
    kinds = {
        name: WRITTEN if {name, f"{stage}.{name}"} & OUTPUTS else READ
        for name in values
        if {name, f"{stage}.{name}"} & (OUTPUTS | INPUTS)
    }

    for name in kinds:  # every URL is looked at before anything is fetched
        values[name] = _change(values[name], lambda url: url, name)

    def fetch() -> str:
        for name, kind in kinds.items():
            values[name] = _change(values[name], partial(_copy, kind=kind, part=part), name)
        return ""

    processes.compare("work directories at URLs", fetch)
    return dataclasses.replace(options, **{name: values[name] for name in kinds})


def _change(value: Any, act: Callable[[str], str], option: str) -> Any:
    """An option's value with what `act` gives for each URL in it; `file://` URLs become local paths."""
    if isinstance(value, tuple):
        return tuple(_change(one, act, option) for one in value)
    column = ""
    if isinstance(value, str) and option == "join":  # FILE:COLUMN
        value, colon, name = value.rpartition(":")
        column = colon + name
    found = split_url(value) if isinstance(value, str) else None
    if found:
        name, place = found
        value = name + (act(place) if is_url(place) else place)
    return value + column if column else value


def publish() -> None:
    """Sends what has changed, where that pays. Before a checkpoint, so that none is newer than what belongs to it.

    A store of adapters that waits is older than a checkpoint of its run: users that it lacks are then trained again.
    """
    for copy in _written():
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


def check_apart(written: Iterable[Path], inputs: Iterable[str]) -> None:
    """Raises LampError if a URL that will be written is an input's, or one of them is below the other."""
    places = [url for path in written if (url := url_of(path))]
    for url in filter(None, map(url_of, inputs)):
        for place in places:
            if place == url:
                raise LampError(f"{place}: is also an input; give another output")
            if url.startswith(f"{place}/"):
                raise LampError(f"{place}: contains the input {url}; give an output that is not above an input")
            if place.startswith(f"{url}/"):
                raise LampError(f"{place}: is inside the input {url}; give an output outside of it")


def remove_checkpoints(output: Path) -> None:
    """Removes the checkpoints of a run's directory, here or at its URL; none is no error."""
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    if url := url_of(output / CHECKPOINTS, WRITTEN):
        with _naming(url, "removed"):
            _remove_tree(*_open(url))


def move_checkpoints(source: Path, target: Path) -> None:
    """Moves the checkpoints of one run's directory to another of the same copy, at its URL. Local ones stay.

    Those that are at the target give way. None at the source is no error: they may have been moved before.
    """
    before, after = (url_of(path / CHECKPOINTS, WRITTEN) for path in (source, target))
    if not (before and after):
        return
    with _naming(after, "written"):
        (fs, old), (_, new) = _open(before), _open(after)
        fs.invalidate_cache()  # checkpoints are not written through it
        if found := list(_walk(fs, old)):
            _remove_tree(fs, new)
            for remote in found:
                there = new + remote.removeprefix(old)
                fs.makedirs(os.path.dirname(there), exist_ok=True)
                fs.cp_file(remote, there)
            _remove_tree(fs, old)


def checkpoint_place(path: Path) -> str:
    """Where a run's checkpoints belong: at its URL, or where it says. LampError for a URL that is none of orbax's."""
    url = url_of(path, WRITTEN)
    if url and not url.startswith(_NATIVE):
        known = ", ".join(_NATIVE)
        raise LampError(f"{url}: checkpoints can be written to {known} only; give another --output")
    return url or str(path.absolute())


def leave() -> None:
    """Sends all that has changed and forgets all copies. LampError where something could not be sent."""
    errors = []
    try:
        for copy in _written():
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


def _written() -> list[Copy]:
    return [copy for copy in _copies if copy.kind == WRITTEN] if processes.is_first() else []


def _copy(url: str, *, kind: str, part: str) -> str:
    for copy in _copies:
        if (copy.url, copy.kind) == (url, kind):
            return str(copy.local)
    copy = Copy(url, kind, part if kind == WRITTEN else "")
    copy.fetch()
    _copies.append(copy)
    return str(copy.local)


def _open(url: str) -> tuple[Any, str]:
    """A file system and the path in it. LampError, with what to do, where there is none for the URL."""
    import fsspec

    scheme = url.partition("://")[0]
    try:
        fs, place = fsspec.url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        raise LampError(f"{url}: {error}" + (f"; pip install {package}" if package else "")) from None
    except Exception as error:  # every file system has errors of its own for URLs that it cannot use
        what = f"{type(error).__name__}: {error}"
        raise LampError(f"{url}: {what}; give a local path, or a URL such as gs://BUCKET/run") from error
    if not place.strip("/"):
        raise LampError(f"{url}: a complete file system; give a directory or a file in it")
    return fs, place.rstrip("/")


@contextlib.contextmanager
def _naming(url: str, act: str, remedy: str = "; check the URL, the network and your permissions") -> Iterator[None]:
    """LampError with the URL for whatever goes wrong in a file system: each has errors of its own."""
    try:
        yield
    except LampError:
        raise
    except Exception as error:
        raise LampError(f"{url}: cannot be {act} ({type(error).__name__}: {error}){remedy}") from error


def _kind_of(fs: Any, place: str) -> str | None:
    """`file`, `directory`, or None where nothing is there. Other errors are raised: they say nothing of the place."""
    try:
        return fs.info(place)["type"]
    except (FileNotFoundError, NotADirectoryError):
        return None


def _walk(fs: Any, place: str, folders: list[str] | None = None) -> Iterator[str]:
    """The file at a place, or all files below it; each directory is added to `folders` behind those in it.

    By lists: other calls of fsspec take brackets for patterns.
    """
    kind = _kind_of(fs, place)
    if kind == "file":
        yield place
    elif kind == "directory":
        for one in fs.ls(place, detail=True):
            name = one["name"].rstrip("/")
            if name.strip("/") != place.strip("/"):  # object stores list what stands for a directory in it
                yield from _walk(fs, name, folders) if one["type"] == "directory" else [name]
        if folders is not None:
            folders.append(place)


def _remove_tree(fs: Any, place: str) -> None:
    """Removes all files below a place, and the directories where the file system has them."""
    fs.invalidate_cache()
    folders: list[str] = []
    for name in [*_walk(fs, place, folders)]:
        fs.rm_file(name)
    for folder in folders:
        with contextlib.suppress(OSError, NotImplementedError):
            fs.rmdir(folder)


def _make_room(path: Path, folder: Path) -> None:
    """Makes the directory of a copied file; what is of another kind than at the URL gives way."""
    for above in path.parents:
        if above != folder and above.is_relative_to(folder) and above.is_file():
            above.unlink()
    if path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
