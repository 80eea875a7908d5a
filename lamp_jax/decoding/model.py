"""Generator with its tokenizer, ready to answer: argument and result of the library's functions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from lamp_jax.config import Answering, Devices, Lora, Storage
from lamp_jax.decoding.answers import Answerer
from lamp_jax.decoding.generation import read_generation
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.models.families import check_generator_tokenizer, load_generator
from lamp_jax.models.generator import Generator
from lamp_jax.runs.library import TemporaryOutput
from lamp_jax.sharding import model_options, set_or_default_mesh
from lamp_jax.tasks.catalog import Task


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """Generator on its mesh, with its tokenizer. Compiles once per decoding method and length of prompts."""

    directory: str
    """Directory or hub name of the model."""
    module: Generator
    """Generator: parameters and forward passes."""
    tokenizer: Any
    """Tokenizer of Hugging Face."""
    mesh: Mesh
    """Mesh on which the parameters are sharded; functions that take the model compute on it."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Result of its training: `best` (the score on validation), `best_step`, `step`."""
    temporary: TemporaryOutput | None = None
    """Temporary directory, which is removed with the model."""
    answerers: dict[Any, Answerer] = field(default_factory=dict)
    """Compiled answerers, kept for the next call."""

    @property
    def count(self) -> int:
        """Number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self.module)))

    def answerer(self, task: Task, answering: Answering, lora: Lora | None = None) -> Answerer:
        """Answerer of a task's prompts with these options; the same object for the same arguments."""
        key = (task, answering, lora)
        if key not in self.answerers:
            generation, graph = read_generation(self.directory, answering), nnx.graphdef(self.module)
            self.answerers[key] = Answerer(graph, self.tokenizer, task, answering, generation=generation, lora=lora)
        return self.answerers[key]

    def __repr__(self) -> str:
        best = f", best {self.facts['best']:.4g} at step {self.facts['best_step']}" if "best" in self.facts else ""
        mesh = " x ".join(f"{name} {size}" for name, size in self.mesh.shape.items())
        return f"Model({self.directory!r}, {self.count / 1e6:.3g} M parameters, mesh {mesh}{best})"


def open_model(name: str | Path, devices: Devices, *, storage: Storage = "float32", **further: Any) -> Model:
    """Model of a directory or hub name, on the current mesh or on all devices. LampError as load_generator."""
    tokenizer = load_tokenizer(name)
    check_generator_tokenizer(tokenizer, name)
    with set_or_default_mesh() as mesh:
        module = load_generator(name, storage=storage, **model_options(devices))
    return Model(str(name), module, tokenizer, mesh, **further)
