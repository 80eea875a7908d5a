"""Local copies of files and directories at URLs: fetched before a command, sent where the command writes to them."""

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lamp_jax.errors import LampError
from lamp_jax.runs.filesystems import file_version, naming_url, open_url, path_type, walk
from lamp_jax.runs.urls import WRITTEN, copy_path, is_private, private_path, url_of

CHECKPOINTS = "checkpoints"
_RECORD = "run.json"
_SPLITS = ("train", "dev", "test")  # splits of a data set of `lamp tfds`
# Changed files up to so many bytes are always sent; larger ones after growing by this fraction.
_ALWAYS_SENT, _GROWTH = 2**26, 0.25
_ABSENT = (-1, 0)  # state of a missing file
_TEMPORARY = re.compile(r"\.(.+\.(\d+|[a-z0-9_]{8})|building)\.unfinished|\.(.+\.)?lamp\.lock(-\d+)?")
"""Names of temporary files, which are renamed or removed on completion, and of locks; see `outputs`."""


class LocalCopy:
    """Local copy of a URL: a file, with the files that belong to it by name, or a directory."""

    def __init__(self, url: str, kind: str, shard: str = ""):
        self.url, self.kind = url, kind
        self._fs, self._remote = open_url(url)
        self._above = self._remote.rpartition("/")[0]
        self.local = copy_path(url, kind, shard)
        self._folder = self.local.parent
        self._lock: IO[bytes] | None = None
        self._sent: dict[Path, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Downloads the files that changed since they were last fetched or sent; removes those that the URL no longer
        has.

        Where nothing has changed at the URL, local files that a killed command did not send are kept and sent later. A
        copy for writing is locked until `release`: LampError where another command holds the lock.
        """
        with naming_url(self.url, "read"), contextlib.ExitStack() as stack:
            self._lock_copy()
            stack.callback(self.release)
            self._fs.invalidate_cache()
            remotes = {self._local_path(remote): remote for remote in self._find()}
            versions = {path: file_version(self._fs, remote) for path, remote in remotes.items()}
            known = self._read_notes()
            if self.kind == WRITTEN and known is not None and self._is_ahead(versions, known):
                self._sent = {path: (note[1], note[2]) for path, note in known.items()}
            else:
                self._replace(remotes, versions, known or {})
            if self.kind == WRITTEN:
                stack.pop_all()

    def _is_ahead(self, versions: dict[Path, str], known: dict[Path, list[Any]]) -> bool:
        """Whether the copy has every file of the URL, and the URL was changed by this copy only."""
        return versions.keys() <= known.keys() and all(
            (versions.get(path, "") == note[0] or versions.get(path, "").partition(" ")[0] in note[3:])
            and (path.exists() or note[3:] == [""])
            for path, note in known.items()
        )

    def _replace(self, remotes: dict[Path, str], versions: dict[Path, str], known: dict[Path, list[Any]]) -> None:
        """Makes the copy equal to the URL's contents."""
        for path in [path for path in self._files() if path not in remotes]:
            path.unlink()
        for path, remote in remotes.items():
            note = known.get(path, ["", 0, 0])
            if versions[path] != note[0] or not path.is_file() or _state(path) != (note[1], note[2]):
                _clear_path(path, self._folder)
                unfinished = private_path(self._folder, "part")
                self._fs.get_file(remote, str(unfinished))
                os.replace(unfinished, path)
                note = [versions[path], *_state(path)]
            known[path], self._sent[path] = note[:3], (note[1], note[2])
        self._write_notes({path: known[path] for path in remotes})

    def send(self) -> None:
        """Sends files that changed since they were fetched or sent; removes from the URL files that were removed
        locally.

        Files are sent in the order in which they were written, so that data precede the lines that refer to them.
        """
        with naming_url(self.url, "written", "; run the same command again to send the missing files"):
            states = self._states()
            changed = [path for path, state in states.items() if self._sent.get(path) != state]
            if removed := self._sent.keys() - states.keys():
                self._check_locked()
                self._announce(dict.fromkeys(removed, ""))
            for record in (self.local / _RECORD, self.local.with_name(f"{self.local.name}.{_RECORD}")):
                if record in changed and len(changed) > 1:
                    self._unfinish(record)
            # Clocks are coarse: of files of one time, those that refer to others come last.
            for path in sorted(changed, key=lambda path: (states[path][1], _refers_to_others(path))):
                self._announce({path: str(states[path][0])})
                self._send_file(path, states[path])
            for path in removed:
                self._check_locked()
                self._remove_remote(path)

    def _unfinish(self, path: Path) -> None:
        """Marks a finished run record at the URL as unfinished before other files are sent; the record is sent last.

        Otherwise a kill would leave those files without a record, or with the record of another run that a forced one
        replaces. In that case the fingerprint is emptied, since the files are a mixture, which only `--force` replaces.
        """
        remote, new = self._remote_path(path), _record(path.read_bytes())
        old = _record(self._fs.cat_file(remote)) if path_type(self._fs, remote) == "file" else None
        if not (new if old is None else old).get("finished"):
            return
        makes = [*(old or {}).get("makes", []), *new.get("makes", [])]
        mixture = {} if old is None else {"fingerprint": "", "makes": makes}
        unfinished = json.dumps((old or new) | {"finished": False} | mixture).encode()
        self._announce({path: str(len(unfinished))})
        self._fs.makedirs(os.path.dirname(remote), exist_ok=True)
        self._fs.pipe_file(remote, unfinished)
        self._fs.invalidate_cache()
        self._note(path, self._sent.get(path, _ABSENT))

    def _announce(self, sizes: dict[Path, str]) -> None:
        """Notes the size each file will have at the URL ("": removed), so that a kill does not look like a foreign
        change."""
        notes = self._read_notes() or {}
        self._write_notes(notes | {path: [*notes.get(path, ["", *_ABSENT])[:3], size] for path, size in sizes.items()})

    def _note(self, path: Path, state: tuple[int, int]) -> None:
        """Notes a file's version at the URL and the state of its copy."""
        version = file_version(self._fs, self._remote_path(path))
        self._write_notes((self._read_notes() or {}) | {path: [version, *state]})

    def _remove_remote(self, path: Path) -> None:
        if path in self._sent and path_type(self._fs, self._remote_path(path)):
            self._fs.rm_file(self._remote_path(path))
        self._sent.pop(path, None)
        self._write_notes({known: note for known, note in (self._read_notes() or {}).items() if known != path})

    def _send_file(self, path: Path, state: tuple[int, int]) -> None:
        remote = self._remote_path(path)
        self._fs.makedirs(os.path.dirname(remote), exist_ok=True)
        self._fs.put_file(str(path), remote)
        self._fs.invalidate_cache()
        size = self._fs.info(remote)["size"]
        if size != state[0]:
            raise LampError(f"{url_of(path)}: {size} of {state[0]} bytes have arrived; run the command again")
        self._note(path, state)
        self._sent[path] = state

    def is_worth_sending(self) -> bool:
        """Whether the changes are worth sending now: files are sent completely, because objects in a bucket cannot be
        appended to.

        Files that have only grown are held back, unless they are small, until they have grown by a quarter, so the
        total traffic is a few times their final size. They are held back together, because one may refer to another.
        """
        states = self._states()
        changed = [path for path, state in states.items() if self._sent.get(path) != state]
        size, before = (sum(of[path][0] for path in changed if path in of) for of in (states, self._sent))
        grown = all(path in self._sent and states[path][0] > self._sent[path][0] for path in changed)
        return (
            not grown or self._sent.keys() > states.keys() or size <= _ALWAYS_SENT or size - before >= _GROWTH * before
        )

    def release(self) -> None:
        """Unlocks the copy for other commands of this machine."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def _lock_copy(self) -> None:
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

    def _check_locked(self) -> None:
        """LampError where the copy was removed: its missing files must not be removed at the URL."""
        with contextlib.suppress(FileNotFoundError):
            if self._lock and os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self._lock.name)):
                return
        raise LampError(
            f"{self.url}: its copy in {self._folder} was removed while the command ran; run the command again"
        )

    def _states(self) -> dict[Path, tuple[int, int]]:
        return {path: _state(path) for path in self._files()}

    def _files(self) -> Iterator[Path]:
        for path in self._folder.rglob("*"):
            if path.is_file() and self._belongs(path):
                yield path

    def _find(self) -> Iterator[str]:
        """Paths of the URL's files and, of a copy for writing, of the files beside it that a stage may read or
        write."""
        roots, name = [self._remote], self.local.name
        if self.kind == WRITTEN and path_type(self._fs, self._remote) != "directory":
            ends = ("", ".run.json", ".journal.jsonl")
            beside = [f"{name}{staged}{end}" for staged in ("", ".unfinished") for end in ends]
            beside += [Path(name).with_suffix(".scores.json").name + end for end in ("", ".unfinished")]
            roots = [self._remote_path(self._folder / name) for name in dict.fromkeys(beside)]
        elif name in _SPLITS and path_type(self._fs, self._remote) is None:  # DATA_SET/train, of a directory's files
            alone = path_type(self._fs, f"{self._above}/dataset_info.json")
            roots = [self._above if alone else f"{self._above}/lamp"]
        for root in roots:
            for remote in walk(self._fs, root):
                if self._belongs(self._local_path(remote)):
                    yield remote

    def _belongs(self, path: Path) -> bool:
        """Whether a file of the copy's folder belongs to the URL: neither a checkpoint nor a temporary file."""
        parts = path.relative_to(self._folder).parts
        others = parts[1:] if parts[0] == self.local.name else parts
        return not (
            is_private(parts[0])
            or CHECKPOINTS in parts[1:-1]
            or (self.kind == WRITTEN and any(_TEMPORARY.fullmatch(part) for part in others))
        )

    def _local_path(self, remote: str) -> Path:
        return self._folder / remote.removeprefix(self._above).lstrip("/")

    def _remote_path(self, path: Path) -> str:
        return f"{self._above}/{path.relative_to(self._folder).as_posix()}"

    def _read_notes(self) -> dict[Path, list[Any]] | None:
        """For each file: its version at the URL, size and mtime of the equal copy, and the announced size.

        None where there are no notes.
        """
        try:
            known = json.loads(private_path(self._folder, "fetched.json").read_bytes())
        except (FileNotFoundError, ValueError):  # a machine that crashed may leave it empty
            return None
        return {self._folder / name: note for name, note in known.items()}

    def _write_notes(self, known: dict[Path, list[Any]]) -> None:
        named = {path.relative_to(self._folder).as_posix(): note for path, note in known.items()}
        unfinished = private_path(self._folder, "fetched.unfinished")
        unfinished.write_text(json.dumps(named))
        os.replace(unfinished, private_path(self._folder, "fetched.json"))


def _refers_to_others(path: Path) -> bool:
    """Whether a file refers to others of its age: a journal, a record, a list of files."""
    return path.suffix in (".json", ".jsonl")


def _record(content: bytes) -> dict[str, Any]:
    """The run record in `content`; empty where it is not a JSON object."""
    try:
        record = json.loads(content)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _clear_path(path: Path, folder: Path) -> None:
    """Makes the directory of a copied file; removes files in place of directories and the reverse."""
    for above in path.parents:
        if above != folder and above.is_relative_to(folder) and above.is_file():
            above.unlink()
    if path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
