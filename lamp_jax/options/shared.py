"""Options that many commands share."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from lamp_jax.config import CORRECT, Compatibility, Devices
from lamp_jax.retrieval.rankers import RETRIEVERS, RetrieverName, describe

ChosenRetriever = Annotated[RetrieverName, arg(help=f"Retriever that orders the profile. {describe(RETRIEVERS.values())}.")]
ChosenRetrievers = Annotated[
    tuple[RetrieverName, ...],
    arg(
        help="Retrievers that order the profiles in the train prompts; with several, each question gives one example per "
        "retriever. "
        f"{describe(RETRIEVERS.values())}."
    ),
]


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
