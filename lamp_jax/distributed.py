"""Process groups in jax: initialization, gathering of sharded arrays, common stopping."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import jax
import numpy as np
from jax._src import distributed  # jax has no public access to the key-value store of its coordination service
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lamp_jax.errors import LampError, Preempted
from lamp_jax.runs import processes
from lamp_jax.runs.processes import GroupDeclaration, ProcessGroup

_GET_MILLISECONDS = 1000  # after each, Ctrl-C is handled
_SHUTDOWN_SECONDS = 30  # for failed processes; those that end normally have waited for each other before


def start(declared: GroupDeclaration) -> None:
    """Joins the process group, once, before jax starts. LampError if the processes do not find each other."""
    if processes.process_count() > 1:
        return
    given = {"coordinator_address": declared.address, "num_processes": declared.number, "process_id": declared.index}
    try:
        jax.distributed.initialize(**(given if declared.address else {}), shutdown_timeout_seconds=_SHUTDOWN_SECONDS)
    except (RuntimeError, ValueError) as error:
        where = declared.address or f"{processes.HOSTS}=all"
        remedy = "start all with the same address" if declared.address else "start all at the same time"
        raise LampError(f"{where}: the processes did not connect ({error}); {remedy}") from None
    state = distributed.global_state
    client = state.client
    if client is None or not state.num_processes or state.num_processes < 2:
        return

    def get(name: str) -> str:
        while True:
            try:
                return client.blocking_key_value_get_bytes(name, _GET_MILLISECONDS).decode()
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise

    def put(name: str, value: str) -> None:
        client.key_value_set_bytes(name, value.encode())

    processes.join_group(ProcessGroup(state.num_processes, state.process_id, put, get))


def read(values: jax.Array) -> np.ndarray:
    """Complete array as numpy on every process. All processes must call it if the array is sharded over them."""
    if not (values.is_fully_addressable or values.is_fully_replicated):
        values = jax.sharding.reshard(values, NamedSharding(values.sharding.mesh, P()))  # pyright: ignore[reportAttributeAccessIssue]
    return np.asarray(values)


@contextmanager
def watch() -> Iterator[Callable[[int], bool]]:
    """Context with a function that says whether to stop after a step, because of SIGTERM; called once per step.

    All processes call it for every step and get the same answer, even if only one received the signal.
    """
    if processes.process_count() > 1:  # jax has its own handler
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = threading.Event()
    with processes.on_sigterm(asked.set):
        yield lambda step: asked.is_set()


_stops = count()  # jax stops at the number after the largest that any process has passed: none may be skipped


def stop_if_asked() -> None:
    """Raises Preempted after SIGTERM, after the same batch on all processes; a single process is stopped
    immediately."""
    if processes.process_count() > 1 and multihost_utils.reached_preemption_sync_point(next(_stops)):
        raise Preempted
