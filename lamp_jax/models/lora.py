"""LoRA: low-rank updates of a frozen model's weights, separate for each row of a batch.

Hu et al. 2021 (arXiv 2106.09685). Adapters are a dictionary of arrays: for each adapted weight W [L, in, out], named by
its place in the model such as `encoder.attention.query`, the matrices `.down` [L, in, r] and `.up` [L, r, out]; where
there are several adapters, users [U, ...] or batch rows [B, ...] are the first axis.
"""

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from lamp_jax.config import Lora
from lamp_jax.errors import LampError
from lamp_jax.models.dropout import dropout, layer_keys
from lamp_jax.models.families import family_of
from lamp_jax.models.generator import Generator, GeneratorConfig
from lamp_jax.models.kernels import einsum, product_axes
from lamp_jax.models.layers import project
from lamp_jax.models.quantized import Quantized
from lamp_jax.models.step_weight import arranged
from lamp_jax.sharding import Rules, gathered

Adapters = Mapping[str, Any]

DOWN, UP = "down", "up"


class Adapted(nnx.Module):
    """Weight with a low-rank update per row of a batch: x W + scale (dropout(x) A) B; A and B differ between rows."""

    def __init__(self, weight: Any, down: Any, up: Any, *, scale: float, rate: float, key: Any):
        self.weight, self.down, self.up = weight, nnx.Param(down), nnx.Param(up)
        self.key = None if key is None else nnx.Variable(key)
        self.scale, self.rate = scale, rate

    def product(
        self, subscripts: str, x: jax.Array, rules: Rules, *, out: P | None, dtype: jnp.dtype | None
    ) -> jax.Array:
        """Product with x [B, T, ...]; arguments as in `project`."""
        own = project(subscripts, x, self.weight, rules, out=out, dtype=dtype)
        axes = product_axes(subscripts)
        row, narrow = axes.x[0], f"{axes.rows}r"
        down, up = self.down[...].astype(x.dtype), self.up[...].astype(x.dtype)
        sharding = rules.out("batch", *(None,) * (len(narrow) - 1))
        seen = dropout(x, self.rate, None if self.key is None else self.key[...])
        low = einsum(f"{axes.x},{row}{axes.inputs}r->{narrow}", seen, down, out=sharding, dtype=x.dtype)
        addition = einsum(f"{narrow},{row}r{axes.outputs}->{axes.result}", low, up, out=out, dtype=x.dtype)
        return own + self.scale * addition.astype(own.dtype)

    def for_steps(self, *, inputs: int) -> "Adapted":
        """This weight, unstacked, with its own `inputs` input axes, arranged for decoding steps."""
        weight = arranged(self.weight, inputs=inputs)
        return Adapted(weight, self.down[...], self.up[...], scale=self.scale, rate=0.0, key=None)


class Site(NamedTuple):
    """Adapted weight: its attribute names from the model on, and the number of its input axes."""

    path: tuple[str, ...]
    inputs: int

    @property
    def name(self) -> str:
        return ".".join(self.path)


def find_sites(config: GeneratorConfig, targets: tuple[str, ...]) -> list[Site]:
    """Weights chosen by the targets as in peft: by the last part of Hugging Face's name, in all layers and stacks.

    LampError for names that match no weight of this model.
    """
    sites: dict[str, dict[tuple[str, ...], int]] = {}
    for name, place in family_of(config).projections(config).items():
        sites.setdefault(name.rpartition(".")[2], {})[place.path] = place.inputs or 0
    unknown = [target for target in targets if target not in sites]
    if unknown or not targets:
        asked = " ".join(unknown) or "(none)"
        raise LampError(f"--targets {asked}: no such projections in this model; choose from {', '.join(sorted(sites))}")
    return [Site(*one) for target in sorted(set(targets)) for one in sites[target].items()]


def check_rank(lora: Lora, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """LampError for a rank below 1 or above the narrowest side of the adapted weights."""
    widest = min(
        math.prod(shape[1:-1]) if name.endswith(f".{DOWN}") else math.prod(shape[2:]) for name, shape in shapes.items()
    )
    if not 0 < lora.rank <= widest:
        raise LampError(f"--rank {lora.rank}: must be from 1 to {widest}, the narrowest side of the adapted weights")


def adapter_shapes(model: Generator, lora: Lora) -> dict[str, tuple[int, ...]]:
    """Shapes of one adapter's arrays by name: `.down` [L, in, r] and `.up` [L, r, out] of every site.

    LampError for a rank or targets that do not fit the model (which may be abstract).
    """
    shapes = {}
    for site in find_sites(model.config, lora.targets):
        layers, *rest = _weight(model, site.path).shape
        shapes[f"{site.name}.{DOWN}"] = (layers, *rest[: site.inputs], lora.rank)
        shapes[f"{site.name}.{UP}"] = (layers, lora.rank, *rest[site.inputs :])
    check_rank(lora, shapes)
    return shapes


def adapter_specs(model: Generator, lora: Lora) -> dict[str, P]:
    """Partition specs of adapters [U or B, ...]: the first axis as batches, the others as the gathered weight."""
    specs, rules = {}, model.rules
    for site in find_sites(model.config, lora.targets):
        weight = _weight(model, site.path)
        stored = weight.steps if isinstance(weight, Quantized) else weight
        spec = jax.typeof(stored.get_value()).sharding.spec
        axes = (*rules.gathered(spec), *(None,) * (len(weight.shape) - len(spec)))
        specs[f"{site.name}.{DOWN}"] = P(rules.batch, None, *axes[1 : 1 + site.inputs], None)
        specs[f"{site.name}.{UP}"] = P(rules.batch, None, None, *axes[1 + site.inputs :])
    return specs


def draw_adapter(rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """New adapter, initialized as in peft: `.down` from U(-1, 1) / sqrt(in), `.up` zeros, so that it has no effect."""
    return {
        name: np.zeros(shape, np.float32)
        if name.endswith(f".{UP}")
        else rng.uniform(-1, 1, shape).astype(np.float32) / math.sqrt(math.prod(shape[1:-1]))
        for name, shape in shapes.items()
    }


def attach(model: Any, adapters: Adapters, lora: Lora, *, key: jax.Array | None = None) -> Any:
    """Generator with adapters, modified in place: each row of a batch has its own adapter [B, ...].

    With a key, dropout is applied to the adapters' inputs; projections of the same x share the mask (those of one
    module have the same key). For a model that was merged for one call.
    """
    scale, specs = lora.alpha / lora.rank, adapter_specs(model, lora)
    keys: dict[tuple[str, ...], jax.Array | None] = {}
    for site in find_sites(model.config, lora.targets):
        *parents, last = site.path
        module, reads = _weight(model, parents), tuple(site.path if last in _READS_ALONE else parents)
        down, up = (
            jnp.moveaxis(gathered(adapters[name], specs[name]), 0, 1)
            for name in (f"{site.name}.{DOWN}", f"{site.name}.{UP}")
        )
        if reads not in keys:
            keys[reads] = layer_keys(None if key is None else jax.random.fold_in(key, len(keys)), len(down))
        weight = getattr(module, last)
        setattr(module, last, Adapted(weight, down, up, scale=scale, rate=lora.dropout, key=keys[reads]))
    return model


_READS_ALONE = ("output", "outer")  # projections whose x is not shared with another one of their module


def _weight(model: Any, path: Sequence[str]) -> Any:
    return reduce(getattr, path, model)
