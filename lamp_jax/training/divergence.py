"""Trainings whose numbers are no longer finite: found without a wait for the newest update, and ended for good."""

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
"""Beside a run's logs: that its numbers were not finite, at which step, and what that says to its user."""

_LATE = 8  # updates: so many are left to the device when an older one is looked at, so that it never runs out of work


class DivergedError(LampError):
    """Numbers of a step that are not finite."""

    def __init__(self, step: int, values: Mapping[str, float]):
        self.step, self.values = step, values
        bad = ", ".join(f"{name} is {value}" for name, value in values.items() if not math.isfinite(value))
        super().__init__(f"step {step}: {bad}")


class Unread:
    """Numbers of updates (`loss`, `gradient_norm`) that are still on the device, until they are looked at.

    They are looked at in the order of the steps, after the same updates in all processes.
    """

    def __init__(self):
        self._waiting: deque[tuple[int, Mapping[str, jax.Array]]] = deque()

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Keeps an update's numbers. DivergedError for an older update, which the device has computed long ago."""
        self._waiting.append((step, metrics))
        if len(self._waiting) == 2 * _LATE:
            self._look(_LATE)

    def look(self) -> None:
        """DivergedError for the first of all updates whose numbers are not finite; waits for the newest."""
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
    """The norm of all parameters: not finite if one of them is not, or if they are far too large to compute with."""
    return {"norm of the parameters": _norm(params)}


def check_converging(output: str | Path) -> None:
    """LampError where a run in `output` has diverged: from its checkpoint it would do so again."""
    path = Path(output) / DIVERGED
    found = on_first(lambda: read_json(path) if path.exists() else None)
    if found is not None:
        why = found.get("why") if isinstance(found, dict) else None
        raise LampError(f"{why or f'{path}: the training has diverged'} (to try the same again, remove {path})")


def end_diverged(output: Path, error: DivergedError, learning: Learning, *, saved: int, best: int) -> LampError:
    """Notes in `output` that the run there has diverged, and gives the error that says what is left and what to do."""
    left = f"the checkpoint of step {saved} is kept" if saved else "nothing had been saved before"
    if best:
        left += f", and the best model, of step {best}"
    advice = f"try a --learning-rate below {learning.learning_rate:g} or a longer --warmup-ratio, with "
    if error.step == 1:  # before any change
        advice = "look for numbers in the model or the data that are far too large, and then try again with "
    advice += f"another --output (and {output} as the model to start from)" if best else "--force"
    why = f"{output}: the training has diverged at {error}; {left}; {advice}"
    on_first(lambda: write_json(output / DIVERGED, {"step": error.step, "why": why}))
    return LampError(why)
