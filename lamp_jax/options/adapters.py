"""The commands that train and convert users' adapters."""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from lamp_jax.config import AdapterTraining, Profiles, Storage
from lamp_jax.options.shared import Compatible, Computes, Writes


@dataclass(frozen=True)
class TrainAdapters(AdapterTraining, Writes, Compatible, Computes):
    """Train one LoRA adapter per user on the user's own profile, many users at once over one frozen model."""

    task: str
    """Task, e.g. LaMP-3."""
    questions: str
    """Questions whose profiles the adapters learn; golds are not read (but by `--shared questions`)."""
    output: str
    """Directory of the store: all adapters in one set of files, beside it logs."""
    model: str = "google/flan-t5-base"
    """Model directory or hub name of the base, which stays as it is."""
    profiles: Profiles = "single"
    """What a user with several questions learns."""
    max_length: int = 512
    """Longest input, in tokens, `</s>` included."""
    target_length: int = 512
    """Longest answer, in tokens, `</s>` included."""
    keep: Literal["float32", "bfloat16"] = "float32"
    """Type of the adapters in the store."""
    storage: Storage = "float32"
    """How the base's matrices lie in memory."""


@dataclass(frozen=True)
class ExportAdapter(Writes):
    """Write one user's adapter as a directory of Hugging Face's peft."""

    store: Positional[str]
    """Directory of a store."""
    user: str
    """User id."""
    output: str
    """Directory to write: `PeftModel.from_pretrained(base, DIRECTORY)` loads it."""
    model: str = ""
    """Model directory or hub name of the store's base; empty: as it was named when the store was made."""


@dataclass(frozen=True)
class ImportAdapter:
    """Add an adapter that Hugging Face's peft saved to a store, which is made where there is none."""

    directory: Positional[str]
    """Directory of the adapter, as `save_pretrained` writes it."""
    store: str
    """Directory of the store."""
    user: str
    """User id that it will have; by the id `everybody` it answers for all who have no adapter of their own."""
    model: str
    """Model directory or hub name of its base."""
    items: int = 0
    """How many examples it was trained on, where that is known."""
    keep: Literal["store", "float32", "bfloat16"] = "store"
    """Type of the adapters in the store: as it has them, or float32 in a new one (another than it has is an error)."""


@dataclass(frozen=True)
class ConvertStore(Writes):
    """Make a store of adapters of this version from one of an earlier version, which stays as it is."""

    store: str
    """Directory of the old store."""
    output: str
    """Directory of the new one."""
