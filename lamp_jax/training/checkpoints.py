"""Training state to disk and back onto any mesh; the only file that knows orbax."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from lamp_jax.errors import LampError
from lamp_jax.runs import remote


class Checkpoints:
    """The newest whole checkpoint of a run; a save that is cut short leaves the one before it."""

    def __init__(self, directory: str | Path):
        # Typed loosely: orbax's own policies do not fit its annotation of the argument.
        policy: Any = ocp.training.preservation_policies.LatestN(1)
        place = remote.checkpoint_place(Path(directory))
        self._place = place
        logging.getLogger("absl").addFilter(_is_not_raised_too)
        self._checkpointer = ocp.training.Checkpointer(place, preservation_policy=policy)

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Writes `state` (a tree of arrays) and `progress` (plain JSON) in the background."""
        remote.publish()
        with self._naming_disk_errors():  # of the save before, too
            self._checkpointer.save_async(step, state, force=True, custom_metadata=progress)

    def restore(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest state, laid out as `abstract_state` says, and its progress; None where nothing was saved."""
        latest = self._checkpointer.latest
        if latest is None:
            return None
        state = self._checkpointer.load(latest, abstract_state)
        progress: Any = self._checkpointer.metadata(latest).custom_metadata
        return state, progress or {}

    @property
    def step(self) -> int:
        """That of the newest checkpoint on disk; -1 where nothing was saved."""
        latest = self._checkpointer.latest
        return -1 if latest is None else latest.step

    @property
    def progress(self) -> dict[str, Any] | None:
        """What was saved beside the newest state; None where nothing was saved."""
        latest = self._checkpointer.latest
        progress: Any = None if latest is None else self._checkpointer.metadata(latest).custom_metadata
        return progress

    def close(self) -> None:
        """Waits until everything is on disk."""
        with self._naming_disk_errors():
            self._checkpointer.close()

    @contextmanager
    def _naming_disk_errors(self) -> Iterator[None]:
        """LampError where a checkpoint could not be written: orbax 0.12 gives a full disk as a ValueError."""
        try:
            yield
        except ValueError as error:
            if "os_error_code" not in str(error):
                raise
            raise LampError(
                f"{self._place}: a checkpoint cannot be written ({error}); make room or give another --output; "
                "the same command goes on after the checkpoint before it"
            ) from error


def _is_not_raised_too(record: logging.LogRecord) -> bool:
    """Whether a line of orbax's log says anything new: it logs, with a traceback, what it raises afterwards."""
    return not (record.exc_info and "orbax" in record.pathname)
