"""Process group: the processes that run one command together, and the index of this one."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

from lamp_jax.errors import LampError

Value = TypeVar("Value")

ADDRESS, NUMBER, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
HOSTS = "LAMP_HOSTS"
"""`all`: jax finds the other processes itself, through TPU slices, Slurm, Kubernetes or MPI."""


@dataclass(frozen=True)
class GroupDeclaration:
    """Declared process group: address of the first process, number of processes, index of this one.

    Without an address jax finds all three.
    """

    address: str = ""
    number: int = 0
    index: int = 0


def read_declaration(environment: Mapping[str, str]) -> GroupDeclaration | None:
    """Process group that the environment declares; None for one process. LampError for an incomplete declaration."""
    hosts = environment.get(HOSTS, "")
    if hosts not in ("", "all"):
        raise LampError(f"{HOSTS}={hosts}: set {HOSTS}=all, so that jax finds the other processes, or unset it")
    if hosts:
        return GroupDeclaration()
    names = (ADDRESS, NUMBER, INDEX)
    missing = [name for name in names if not environment.get(name)]
    if len(missing) == len(names):
        return None
    given = ", ".join(f"{name}={environment[name]}" for name in names if name not in missing)
    if missing:
        raise LampError(
            f"{given}: several processes need {' and '.join(missing)} too; set all three variables, or none of them"
        )
    if ":" not in environment[ADDRESS]:
        raise LampError(f"{ADDRESS}={environment[ADDRESS]}: give HOST:PORT of the first process")
    if not (environment[NUMBER].isdecimal() and environment[INDEX].isdecimal()):
        raise LampError(f"{given}: {NUMBER} and {INDEX} must be integers from 0 on")
    number, index = int(environment[NUMBER]), int(environment[INDEX])
    if not index < number:
        raise LampError(f"{NUMBER}={number}, {INDEX}={index}: processes are numbered from 0 to {NUMBER} - 1")
    return GroupDeclaration(environment[ADDRESS], number, index) if number > 1 else None


@dataclass(frozen=True)
class ProcessGroup:
    """Processes that run a command, and `put` and `get` of the coordination service's key-value store."""

    number: int = 1
    index: int = 0
    put: Callable[[str, str], None] | None = None
    get: Callable[[str], str] | None = None
    numbers: Iterator[int] = field(default_factory=count)
    """Numbers of the keys: the same in all processes, because all run the same program."""


_SINGLE = ProcessGroup()
_group = _SINGLE


def join_group(group: ProcessGroup) -> None:
    """Makes this process a member of `group`."""
    global _group
    _group = group


def process_count() -> int:
    return _group.number


def index() -> int:
    """Index of this process in the group, from 0."""
    return _group.index


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return _group.index == 0


def on_first(function: Callable[[], Value]) -> Value:
    """Runs `function` on the first process and broadcasts its value, which must be representable in JSON.

    The others wait. A LampError or OSError of `function` is raised on all processes. While it runs, the group has one
    process.
    """
    group = _group
    if group.number == 1:
        return function()
    name = f"lamp/{next(group.numbers)}"
    if group.index:
        return _decode(group.get(name))  # pyright: ignore[reportOptionalCall]
    join_group(_SINGLE)
    try:
        encoded = _run_encoded(function)
    finally:
        join_group(group)
    group.put(name, encoded)  # pyright: ignore[reportOptionalCall]
    return _decode(encoded)


def assert_equal(what: str, function: Callable[[], str]) -> str:
    """Runs `function` on all processes and returns its value. LampError on all processes where values differ or one
    fails."""
    group = _group
    if group.number == 1:
        return function()
    name = f"lamp/{next(group.numbers)}"
    group.put(f"{name}/{group.index}", _run_encoded(function))  # pyright: ignore[reportOptionalCall]
    found = [_decode(group.get(f"{name}/{index}")) for index in range(group.number)]  # pyright: ignore[reportOptionalCall]
    for index, other in enumerate(found):
        if other != found[0]:
            raise LampError(
                f"{what}: process 0 has {found[0]}, process {index} has {other}; "
                "give every process the same command and the same files"
            )
    return found[0]


def wait() -> None:
    """Returns when all processes have called it."""
    assert_equal("wait", str)


def _run_encoded(function: Callable[[], Any]) -> str:
    try:
        return json.dumps({"value": function()})
    except (LampError, OSError) as error:
        return json.dumps({"error": str(error)})


def _decode(encoded: str) -> Any:
    found = json.loads(encoded)
    if "error" in found:
        raise LampError(found["error"])
    return found["value"]


@contextmanager
def on_sigterm(callback: Callable[[], None]) -> Iterator[None]:
    """Context in which SIGTERM calls `callback`. No effect outside of the main thread, which alone receives signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def handle(number: int, frame: Any) -> None:
        if os.getpid() == owner:
            return callback()
        os._exit(128 + number)  # a process that was forked from this one

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
