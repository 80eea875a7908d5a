"""Detection of training runs with non-finite numbers, without waiting for the newest update, and their end."""

import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import optax

from lamp_jax.config import Learning
from lamp_jax.errors import LampError
from lamp_jax.runs.json_files import read_json, write_json
from lamp_jax.runs.processes import on_first

DIVERGED = "diverged.json"
"""File next to a run's logs with the step of the divergence and the message for the user."""

_LATE = 8  # updates that stay queued on the device when older ones are read, so that it is never idle


class DivergedError(LampError):
    """Non-finite numbers at a step."""

    def __init__(self, step: int, values: Mapping[str, float]):
        self.step, self.values = step, values
        bad = ", ".join(f"{name} is {value}" for name, value in values.items() if not math.isfinite(value))
        super().__init__(f"step {step}: {bad}")


class PendingMetrics:
    """Metrics of updates (`loss`, `gradient_norm`) that are still on the device and not yet checked.

    They are checked in the order of the steps, after the same updates on all processes.
    """

    def __init__(self):
        self._waiting: deque[tuple[int, Mapping[str, jax.Array]]] = deque()

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Adds an update's metrics. DivergedError for those of older updates, which the device has finished."""
        self._waiting.append((step, metrics))
        if len(self._waiting) == 2 * _LATE:
            self._look(_LATE)

    def look(self) -> None:
        """Checks all updates, waiting for the newest. DivergedError for the first with non-finite metrics."""
        self._look(len(self._waiting))

    def _look(self, count: int) -> None:
        steps, metrics = zip(*(self._waiting.popleft() for _ in range(count)), strict=True) if count else ((), ())
        for step, values in zip(steps, jax.device_get(metrics), strict=True):
            check(step, values)


def check(step: int, values: Mapping[str, Any]) -> None:
    """DivergedError unless all of a step's numbers are finite."""
    found = {name: float(value) for name, value in values.items()}
    if not all(map(math.isfinite, found.values())):
        raise DivergedError(step, found)


_norm = jax.jit(optax.tree.norm)


def norm_of(params: Any) -> dict[str, jax.Array]:
    """Norm of all parameters: not finite if one of them is not, or if they are too large to compute with."""
    return {"norm of the parameters": _norm(params)}


def check_converging(output: str | Path) -> None:
    """LampError where a run in `output` has diverged, as it would again from its checkpoint."""
    path = Path(output) / DIVERGED
    found = on_first(lambda: read_json(path) if path.exists() else None)
    if found is not None:
        why = found.get("why") if isinstance(found, dict) else None
        raise LampError(f"{why or f'{path}: the training has diverged'} (to try the same again, remove {path})")


def end_diverged(output: Path, error: DivergedError, learning: Learning, *, saved: int, best: int) -> LampError:
    """Writes the divergence of a run to `output`; returns the error with the kept files and the remedy."""
    left = f"the checkpoint of step {saved} is kept" if saved else "nothing had been saved before"
    if best:
        left += f", and the best model, of step {best}"
    advice = f"try a --learning-rate below {learning.learning_rate:g} or a longer --warmup-ratio, with "
    if error.step == 1:  # before any change
        advice = "look for numbers in the model or the data that are far too large, then try again with "
    advice += f"another --output (and {output} as the model to start from)" if best else "--force"
    why = f"{output}: the training has diverged at {error}; {left}; {advice}"
    on_first(lambda: write_json(output / DIVERGED, {"step": error.step, "why": why}))
    return LampError(why)
