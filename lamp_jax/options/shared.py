"""What many commands' options have in common."""

from dataclasses import dataclass

from lamp_jax.config import CORRECT, Compatibility, Devices


@dataclass(frozen=True, kw_only=True)
class Writes:
    """A command that writes an output."""

    force: bool = False
    """Start over where the output already exists."""


@dataclass(frozen=True, kw_only=True)
class Compatible:
    """A command that can follow the papers' public code."""

    compatibility: Compatibility = CORRECT


@dataclass(frozen=True, kw_only=True)
class Computes:
    """A command that computes on devices."""

    devices: Devices = Devices()
