"""Options of the commands that train and convert users' adapters."""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from lamp_jax.options.shared import Computes, Writes
from lamp_jax.settings import AdapterTraining


@dataclass(frozen=True)
class TrainAdapters(AdapterTraining, Writes, Computes):
    """Train one LoRA adapter per user on the user's own profile, many users at once over one frozen model."""

    task: str
    """Task, e.g. LaMP-3."""
    questions: str
    """Questions whose profiles the adapters are trained on; references are read by `--shared questions` only."""
    output: str
    """Directory of the adapter store and the training logs."""
    model: str = "google/flan-t5-base"
    """Model directory or hub name of the frozen base model."""


@dataclass(frozen=True)
class ExportAdapter(Writes):
    """Write one user's adapter as a directory that Hugging Face's peft loads."""

    store: Positional[str]
    """Directory of an adapter store."""
    user: str
    """User id."""
    output: str
    """Directory to write: `PeftModel.from_pretrained(base, DIRECTORY)` loads it."""
    model: str = ""
    """Model directory or hub name of the store's base model; empty: the name recorded in the store."""


@dataclass(frozen=True)
class ImportAdapter:
    """Add an adapter saved by Hugging Face's peft to an adapter store, creating the store if necessary."""

    directory: Positional[str]
    """Directory of the adapter, written by `save_pretrained`."""
    store: str
    """Directory of the store."""
    user: str
    """User id of the adapter; `everybody` makes it the adapter of all users without their own."""
    model: str
    """Model directory or hub name of the adapter's base model."""
    items: int = 0
    """Number of examples the adapter was trained on, if known."""
    keep: Literal["store", "float32", "bfloat16"] = "store"
    """Data type of the adapters in the store: `store` is that of the store (float32 for a new store); another type than
    the store's is an error."""


@dataclass(frozen=True)
class ConvertStore(Writes):
    """Convert an adapter store of an earlier version into a new one; the old store is not changed."""

    store: str
    """Directory of the old store."""
    output: str
    """Directory of the new store."""
