"""The commands that show and examine: the demo, and the TPU's compiler."""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional, Suppress

from lamp_jax.options.shared import Writes


@dataclass(frozen=True)
class Demo(Writes):
    """Make a small benchmark, train a small T5 on it and compare retrievers: the main job in five minutes."""

    output: str = "demo"
    """Directory of everything that is made."""
    seed: int = 0
    """Seed of the benchmark and of the training."""
    size: Literal["full", "smoke"] = "full"
    """`smoke` is seconds long and learns nothing: it shows that everything runs."""
    stages: tuple[Literal["retriever", "selector", "adapters"], ...] = ()
    """What to show beside: `retriever` trains dense retrievers on the model's feedback (ROPG-KD, ROPG-RL), `selector`
    models that choose among retrievers (RSPG-Pre, RSPG-Post), `adapters` a LoRA adapter for every user."""


@dataclass(frozen=True)
class Compile:
    """Compile a step of an experiment for TPUs that need not be there: does it fit, what does it cost.

    Options of the experiment follow behind `--`: lamp compile CONFIG --topology v5e:4x4 -- --sharding fsdp
    """

    config: Positional[str]
    """A config page."""
    topology: str
    """Chips of a slice and their arrangement: v5e:1x1 (Colab), v5e:4x4, v6e:2x4, v5p:2x2x2, tpu7x:2x2x1, v4:2x2x1,
    v3:2x2, v2:2x2. A chip of v2, v3, v4 and tpu7x holds two devices, of the others one."""
    slices: int = 1
    """Slices of that topology. The data axis spans them; traffic between them, over the data-centre network, is counted
    apart."""
    megacore: bool = False
    """v4: one device a chip, of both its cores, as jax opens a real v4; libtpu without a TPU describes two."""
    stage: Literal["", "train", "generate", "feedback", "retriever", "selector", "adapters"] = ""
    """Whose step; empty: that of the page. A page of `lamp train` also says how to generate and to ask for feedback."""
    candidates: int = 6
    """`selector`: retrievers of the pool, which a page does not say."""
    json: bool = False
    """Print one JSON object and nothing else."""
    options: Suppress[tuple[str, ...]] = ()
    """What follows `--`."""
