"""Checkpoints of training state, restored onto any mesh; the only module that uses orbax."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from lamp_jax.errors import LampError
from lamp_jax.runs import remote


class Checkpoints:
    """Newest complete checkpoint of a run; an interrupted save keeps the previous one."""

    def __init__(self, directory: str | Path):
        # Typed loosely: orbax's own policies do not fit its annotation of the argument.
        policy: Any = ocp.training.preservation_policies.LatestN(1)
        self._location = location = remote.checkpoint_location(Path(directory))
        logging.getLogger("absl").addFilter(_is_not_raised_too)
        self._checkpointer = ocp.training.Checkpointer(location, preservation_policy=policy)

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Writes `state` (a tree of arrays) and `progress` (plain JSON) in the background."""
        remote.publish()
        with self._naming_disk_errors():  # of the previous save, too
            self._checkpointer.save_async(step, state, force=True, custom_metadata=progress)

    def restore(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
        """Newest state, sharded as `abstract_state`, and its progress; None where nothing was saved."""
        latest = self._checkpointer.latest
        if latest is None:
            return None
        state = self._checkpointer.load(latest, abstract_state)
        progress: Any = self._checkpointer.metadata(latest).custom_metadata
        return state, progress or {}

    @property
    def step(self) -> int:
        """Step of the newest checkpoint on disk; -1 where nothing was saved."""
        latest = self._checkpointer.latest
        return -1 if latest is None else latest.step

    @property
    def progress(self) -> dict[str, Any] | None:
        """Progress saved with the newest state; None where nothing was saved."""
        latest = self._checkpointer.latest
        progress: Any = None if latest is None else self._checkpointer.metadata(latest).custom_metadata
        return progress

    def close(self) -> None:
        """Waits until everything is on disk."""
        with self._naming_disk_errors():
            self._checkpointer.close()

    @contextmanager
    def _naming_disk_errors(self) -> Iterator[None]:
        """Context in which a failed write of a checkpoint is a LampError: orbax 0.12 raises ValueError for a full
        disk."""
        try:
            yield
        except ValueError as error:
            if "os_error_code" not in str(error):
                raise
            raise LampError(
                f"{self._location}: a checkpoint cannot be written ({error}); free disk space or give another "
                "--output; the same command resumes after the previous checkpoint"
            ) from error


def _is_not_raised_too(record: logging.LogRecord) -> bool:
    """Filter of log records of errors that orbax raises afterwards."""
    return not (record.exc_info and "orbax" in record.pathname)
