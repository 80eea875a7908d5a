"""Options that many commands share."""

from dataclasses import dataclass

from lamp_jax.config import CORRECT, Compatibility, Devices


@dataclass(frozen=True, kw_only=True)
class Writes:
    """A command that writes an output."""

    force: bool = False
    """Replace an existing output."""


@dataclass(frozen=True, kw_only=True)
class Compatible:
    """A command that can follow the papers' public code."""

    compatibility: Compatibility = CORRECT


@dataclass(frozen=True, kw_only=True)
class Computes:
    """A command that computes on devices."""

    devices: Devices = Devices()
