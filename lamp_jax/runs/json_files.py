"""Atomic writing of files, and reading and writing of JSON files."""

import contextlib
import fcntl
import glob
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import orjson

from lamp_jax.errors import LampError
from lamp_jax.runs.json_records import unique_keys


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as JSON, atomically."""
    with atomic_write(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=1)
        file.write("\n")


def encode(value: Any) -> bytes:
    """`value` as JSON in UTF-8, on one line. Lone surrogates, which occur in tweets, are written as they were read."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def write_json_list(path: str | Path, records: Iterable[bytes]) -> int:
    """Writes a JSON list of encoded records, one per line, streamed and atomically. Returns their number."""
    count = 0
    with atomic_write_bytes(path) as file:
        file.write(b"[")
        for count, record in enumerate(records, start=1):
            file.write(b"\n" if count == 1 else b",\n")
            file.write(record)
        file.write(b"\n]\n")
    return count


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[str]]:
    """A text file that is moved into place when the block ends, and vanishes when it fails.

    Of a process group all files are written by one process: `on_first`, or where `is_first`.
    """
    with atomic_write_bytes(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogatepass", newline="", write_through=True)
        try:
            yield text
        finally:
            text.detach()


@contextlib.contextmanager
def atomic_write_bytes(path: str | Path) -> Iterator[IO[bytes]]:
    """Binary file, otherwise as atomic_write."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open_temporary(path) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            finally:
                Path(file.name).unlink(missing_ok=True)
    except OSError as error:
        if error.filename is None and error.errno:  # such as "No space left on device"
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Temporary path for a library that writes a file by its name; the file is renamed to `path` when the block ends.

    It vanishes when the block fails.
    """
    path = Path(path)
    with atomic_write_bytes(path) as file:
        yield Path(file.name)


def _open_temporary(path: Path) -> IO[bytes]:
    """Temporary file of `path`, locked while it is open. Temporary files that killed runs left of it are removed."""
    for abandoned in path.parent.glob(f".{glob.escape(path.name)}.*.unfinished"):
        if not abandoned.is_dir():
            _remove_abandoned(abandoned)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    while True:
        file = open(temporary, "wb")  # noqa: SIM115 (the caller closes it)
        with contextlib.suppress(OSError):  # a network file system without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if temporary.exists():
            return file
        file.close()  # another process removed it as abandoned before it was locked


def _remove_abandoned(temporary: Path) -> None:
    """Removes a temporary file, unless a running process holds its lock."""
    try:
        with open(temporary, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            temporary.unlink()
    except OSError:
        return


_LFS_POINTER = b"version https://git-lfs"


def check_fetched(path: str | Path) -> None:
    """LampError for a git-lfs pointer, which a clone without git-lfs has in place of a large file."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise LampError(
                f"{path}: a git-lfs pointer, not the file itself; run `git lfs pull` there, or download the file again"
            )


def read_json(path: str | Path) -> Any:
    """Value of a JSON file. Raises LampError with the file and the character at which it is not valid."""
    check_fetched(path)
    try:
        text = Path(path).read_text(encoding="utf-8", errors="surrogatepass")  # as atomic_write writes
        return json.loads(text, object_pairs_hook=unique_keys)
    except FileNotFoundError:
        raise LampError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise LampError(f"{path}: a directory, where a JSON file is expected") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, numbers of 5000 digits; nested too deeply
        raise LampError(f"{path}: invalid JSON ({error}); download or make the file again") from None


def short_repr(value: Any) -> str:
    """`repr` of a value, cut to 60 characters, for messages."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
