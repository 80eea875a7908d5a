"""Options of `lamp demo` and `lamp compile`."""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional, Suppress

from lamp_jax.options.shared import Writes


@dataclass(frozen=True)
class Demo(Writes):
    """Build a small benchmark, train a small T5 on it and compare retrievers, in about five minutes."""

    output: str = "demo"
    """Output directory."""
    seed: int = 0
    """Random seed of the benchmark and of training."""
    compilation_cache: str = ""
    """Directory that keeps compiled programs for later commands; `off`: none. Empty: that of LAMP_COMPILATION_CACHE, or
    else `lamp/compiled` in the user's cache directory."""
    size: Literal["full", "smoke"] = "full"
    """`smoke` takes seconds: a test that everything runs, with meaningless scores."""
    stages: tuple[Literal["retriever", "selector", "adapters"], ...] = ()
    """Further chapters of the demo: `retriever` trains dense retrievers on the model's feedback (ROPG-KD, ROPG-RL),
    `selector` trains models that select a retriever (RSPG-Pre, RSPG-Post), `adapters` trains a LoRA adapter for
    every user."""


@dataclass(frozen=True)
class Compile:
    """Compile a step of an experiment for a TPU topology, without a TPU, and report memory and cost.

    Options of the experiment follow `--`: lamp compile CONFIG --topology v5e:4x4 -- --sharding fsdp
    """

    config: Positional[str]
    """Path of a config page."""
    topology: str
    """Chip generation and arrangement of one slice: v5e:1x1 (Colab), v5e:4x4, v6e:2x4, v5p:2x2x2, tpu7x:2x2x1,
    v4:2x2x1, v3:2x2, v2:2x2. A chip of v2, v3, v4 and tpu7x has two devices, a chip of the others one."""
    slices: int = 1
    """Number of slices. The data axis spans them; traffic between slices (data-centre network, DCN) is counted
    separately."""
    megacore: bool = False
    """v4: one device per chip (both cores), as jax opens a real v4; libtpu without a TPU describes two devices."""
    stage: Literal["", "train", "generate", "feedback", "retriever", "selector", "adapters"] = ""
    """Step to compile; empty: the step of the config page's command. A page of `lamp train` also defines `generate` and
    `feedback`."""
    candidates: int = 6
    """`selector`: number of retrievers in the pool, which a config page does not define."""
    json: bool = False
    """Print one JSON object and nothing else."""
    options: Suppress[tuple[str, ...]] = ()
    """Options after `--`."""
