"""Compilation cache on disk: programs that one command has compiled, for the commands after it.

jax's own cache (jax 0.10 and 0.12) writes an entry in place: another process may read half of it, a killed one leaves
half of it forever, and with a bound on its size one such entry ends all writing. Here an entry is complete or absent.
"""

import contextlib
import hashlib
import os
import platform
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

import jax
from jax._src import compilation_cache  # jax has no public way to give its cache another storage
from jax._src.compilation_cache_interface import CacheInterface

from lamp_jax.errors import LampError

VARIABLE = "LAMP_COMPILATION_CACHE"
"""Environment variable: directory of the compilation cache, or `off`."""
OFF = "off"
MAX_BYTES = 2**30
"""Size of the cache above which the entries that were not used for longest are removed."""

_SUFFIX = ".program"
_KEPT = 0.8  # fraction of the bound that is kept, so that entries are not removed at every write
_UNFINISHED = f"{_SUFFIX}.unfinished"
_ABANDONED_SECONDS = 3600.0  # age at which an unfinished entry belongs to a process that was killed
_CHECKSUM_BYTES = 4


def use_compilation_cache(place: str = "", environment: Mapping[str, str] = os.environ) -> None:
    """Keeps compiled programs in the directory `place`, or none (`off`), from the next compilation on.

    Empty: the place of LAMP_COMPILATION_CACHE, or else `lamp/compiled` in the user's cache directory; but a cache that
    jax has already (JAX_COMPILATION_CACHE_DIR, or an earlier call) stays. LampError for a place that is no directory.
    """
    if not place and jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        return
    place = place or environment.get(VARIABLE, "") or str(_default_place(environment))
    if place == OFF:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()
        return
    if "://" in place or (os.path.exists(place) and not os.path.isdir(place)):
        raise LampError(f"--compilation-cache {place}: not a directory of this machine; give one, or {OFF}")
    limit = jax.config.jax_compilation_cache_max_size  # pyright: ignore[reportAttributeAccessIssue]
    cache = ProgramCache(Path(place), max_bytes=MAX_BYTES if limit < 0 else limit)
    jax.config.update("jax_compilation_cache_dir", place)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    compilation_cache._cache, compilation_cache._cache_initialized = cache, True


def _default_place(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lamp", "compiled")


class ProgramCache(CacheInterface):
    """Compiled programs by key, in a directory that any number of processes read and write at once.

    A failure to write is reported once and ends writing; the programs of this process are compiled all the same.
    """

    def __init__(self, directory: Path, *, max_bytes: int):
        self._path = directory
        self._max_bytes = max_bytes
        self._bytes: int | None = None  # known from the first write on
        self._writes = max_bytes > 0
        self._processor = _processor()

    def get(self, key: str) -> bytes | None:
        """Program of a key; None if there is none or its file is damaged."""
        path = self._file(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        checksum, program = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
        if checksum != _checksum(program):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the time of last use, by which entries are removed
        return program

    def put(self, key: str, value: bytes) -> None:
        """Writes a program under a key, in place of any that is there."""
        if not self._writes or len(value) > self._max_bytes:
            return
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)  # what is in it is run
            if self._bytes is None or self._bytes + len(value) > self._max_bytes:
                self._bytes = self._make_room(len(value))
            self._replace(self._file(key), _checksum(value) + value)
            self._bytes += len(value)
        except OSError as error:
            self._writes = False
            print(
                f"lamp: {self._path}: compiled programs are not kept ({error.strerror}); make room, or give another "
                f"directory or `{OFF}` by --compilation-cache or {VARIABLE}",
                file=sys.stderr,
            )

    def _file(self, key: str) -> Path:
        """File of a key: the program's name, and a digest of the key, which has jax's version, and of the processor."""
        digest = hashlib.sha256(f"{self._processor} {key}".encode()).hexdigest()
        return self._path / f"{key.rpartition('-')[0][:80]}-{digest[:40]}{_SUFFIX}"

    def _replace(self, path: Path, content: bytes) -> None:
        handle, unfinished = tempfile.mkstemp(dir=self._path, prefix=".", suffix=_UNFINISHED)
        try:
            with open(handle, "wb") as file:
                file.write(content)
            os.replace(unfinished, path)
        except OSError:
            os.unlink(unfinished)
            raise

    def _make_room(self, needed: int) -> int:
        """Size of all entries in bytes, after removal of those that were not used for longest if they are too many."""
        entries, now = [], time.time()
        with os.scandir(self._path) as listing:
            files = list(listing)
        for entry in files:
            try:
                found = entry.stat()
            except FileNotFoundError:  # removed by another process
                continue
            if entry.name.endswith(_SUFFIX):
                entries.append((found.st_mtime, entry.path, found.st_size))
            elif entry.name.endswith(_UNFINISHED) and now - found.st_mtime > _ABANDONED_SECONDS:
                Path(entry.path).unlink(missing_ok=True)
        total = sum(size for _, _, size in entries)
        if total + needed <= self._max_bytes:
            return total
        for _, path, size in sorted(entries):
            if total + needed <= _KEPT * self._max_bytes:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
        return total


def _checksum(program: bytes) -> bytes:
    return zlib.crc32(program).to_bytes(_CHECKSUM_BYTES, "big")


def _processor() -> str:
    """Processor's model and features, on which programs for CPUs depend and which jax's keys leave out in part."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    kinds = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return "\n".join(kinds) or f"{platform.machine()} {platform.processor()}"
