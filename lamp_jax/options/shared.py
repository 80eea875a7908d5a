"""Options that many commands share."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from lamp_jax.config import CORRECT, Compatibility, Devices
from lamp_jax.retrieval.rankers import RETRIEVERS, RetrieverName, describe

_ONE = "Retriever that orders the profile."
_SEVERAL = (
    "Retrievers that order the profiles in the train prompts; with several, each question gives one example per "
    "retriever."
)
_NAMES = describe(RETRIEVERS.values())
ChosenRetriever = Annotated[RetrieverName, arg(help=f"{_ONE} {_NAMES}.")]
ChosenRetrievers = Annotated[tuple[RetrieverName, ...], arg(help=f"{_SEVERAL} {_NAMES}.")]


@dataclass(frozen=True, kw_only=True)
class Writes:
    """Option of commands that write an output."""

    force: bool = False
    """Replace an existing output."""


@dataclass(frozen=True, kw_only=True)
class Compatible:
    """Options of commands that can follow the papers' public code."""

    compatibility: Compatibility = CORRECT


@dataclass(frozen=True, kw_only=True)
class Computes:
    """Options of commands that compute on devices."""

    devices: Devices = Devices()
