"""This process among those that run one command: alone, or one of several that agree before they go on."""

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
FIND = "LAMP_HOSTS"
"""`all`: jax finds the other processes itself, where TPU slices, Slurm, Kubernetes or MPI tell it."""


@dataclass(frozen=True)
class Declaration:
    """That several processes run the command: where the first one listens, how many, which this is.

    No address: jax finds all of it.
    """

    address: str = ""
    number: int = 0
    index: int = 0


def read_declaration(environment: Mapping[str, str]) -> Declaration | None:
    """What the environment says of other processes; None for one process. LampError where it says half of it."""
    find = environment.get(FIND, "")
    if find not in ("", "all"):
        raise LampError(f"{FIND}={find}: say {FIND}=all, and jax finds the other processes, or leave it out")
    if find:
        return Declaration()
    names = (ADDRESS, NUMBER, INDEX)
    missing = [name for name in names if not environment.get(name)]
    if len(missing) == len(names):
        return None
    given = ", ".join(f"{name}={environment[name]}" for name in names if name not in missing)
    if missing:
        raise LampError(f"{given}: several processes need {' and '.join(missing)} too; or leave all three out")
    if ":" not in environment[ADDRESS]:
        raise LampError(f"{ADDRESS}={environment[ADDRESS]}: give HOST:PORT of the first process")
    if not (environment[NUMBER].isdecimal() and environment[INDEX].isdecimal()):
        raise LampError(f"{given}: {NUMBER} and {INDEX} are whole numbers from 0 on")
    number, index = int(environment[NUMBER]), int(environment[INDEX])
    if not index < number:
        raise LampError(f"{NUMBER}={number}, {INDEX}={index}: processes are numbered from 0 to {NUMBER} - 1")
    return Declaration(environment[ADDRESS], number, index) if number > 1 else None


@dataclass(frozen=True)
class Company:
    """Those that run the command, and how they tell each other small things: `tell` a value by its name, and `hear`."""

    number: int = 1
    index: int = 0
    tell: Callable[[str, str], None] | None = None
    hear: Callable[[str], str] | None = None
    talks: Iterator[int] = field(default_factory=count)
    """Everybody numbers what is talked about alike, because all run the same program."""


_ALONE = Company()
_company = _ALONE


def join(company: Company) -> None:
    """From now on this process is one of these."""
    global _company
    _company = company


def how_many() -> int:
    return _company.number


def index() -> int:
    """Which of them this is, from 0."""
    return _company.index


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return _company.index == 0


def agree(ask: Callable[[], Value]) -> Value:
    """What the first process finds, or does: it alone asks, the others wait. The value is one that JSON can hold.

    What it raises as an error that the user can mend is raised in all. Whatever it asks in turn, it asks alone.
    """
    company = _company
    if company.number == 1:
        return ask()
    name = f"lamp/{next(company.talks)}"
    if company.index:
        return _open(company.hear(name))  # pyright: ignore[reportOptionalCall]
    join(_ALONE)
    try:
        said = _say(ask)
    finally:
        join(company)
    company.tell(name, said)  # pyright: ignore[reportOptionalCall]
    return _open(said)


def compare(what: str, ask: Callable[[], str]) -> str:
    """What every process finds for itself. LampError in all, if they differ or one of them raises one."""
    company = _company
    if company.number == 1:
        return ask()
    name = f"lamp/{next(company.talks)}"
    company.tell(f"{name}/{company.index}", _say(ask))  # pyright: ignore[reportOptionalCall]
    found = [_open(company.hear(f"{name}/{index}")) for index in range(company.number)]  # pyright: ignore[reportOptionalCall]
    for index, other in enumerate(found):
        if other != found[0]:
            raise LampError(
                f"{what}: process 0 has {found[0]}, process {index} has {other}; "
                "give every process the same command and the same files"
            )
    return found[0]


def wait() -> None:
    """Returns when every process has come here."""
    compare("wait", str)


def _say(ask: Callable[[], Any]) -> str:
    try:
        return json.dumps({"value": ask()})
    except (LampError, OSError) as error:
        return json.dumps({"error": str(error)})


def _open(said: str) -> Any:
    found = json.loads(said)
    if "error" in found:
        raise LampError(found["error"])
    return found["value"]


@contextmanager
def on_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """SIGTERM acts so while the block runs, and then as before. Signals are the main thread's: elsewhere nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def handle(number: int, frame: Any) -> None:
        if os.getpid() == owner:
            return act()
        os._exit(128 + number)  # a process that was forked from this one

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
