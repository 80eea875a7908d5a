"""`lamp compile`: memory and cost of an experiment's step, as compiled for a TPU by the TPU's own compiler."""

import json
import sys

import jax

from lamp_jax.compiler.chips import find_chip, open_topology
from lamp_jax.compiler.report import GIB, StepReport, count_products, describe, measure
from lamp_jax.errors import LampError
from lamp_jax.options.demo import Compile
from lamp_jax.options.pages import override, read_experiment
from lamp_jax.sharding import make_mesh
from lamp_jax.stages.compile_steps import STEPS

_REMEDIES = (
    "--sharding fsdp (parameters over the data axis) or fsdp+tensor with --model-parallel",
    "--remat full (layers are computed again in the backward pass)",
    "--dtype bfloat16",
    "a smaller batch, or --accumulation (gradient-accumulation steps)",
    "more chips",
)


def run(options: Compile) -> None:
    report = compile_page(options)
    print(json.dumps(report.as_json()) if options.json else describe(report))
    if not report.memory.fits:
        missing = (report.memory.peak - report.memory.available) / GIB
        raise LampError(
            f"{options.config}: the step of {report.stage} needs {missing:.2f} GiB per device more than "
            f"{options.topology} has; try, after `--`: {'; '.join(_REMEDIES)}"
        )


def compile_page(options: Compile) -> StepReport:
    """Compiles the step of a config page. LampError for a page without the options of the stage."""
    jax.config.update("jax_platforms", "cpu")  # compilation for a TPU needs none, and uses none that exists
    find_chip(options.topology)
    kinds = {kind: None for _, of in STEPS.values() for kind in of}
    experiment = override(read_experiment(options.config, *kinds), options.options)
    stage = options.stage or next(name for name, (_, of) in STEPS.items() if isinstance(experiment, of[0]))
    build, kinds = STEPS[stage]
    if not isinstance(experiment, kinds):
        raise LampError(
            f"{options.config}: a {type(experiment).__name__}(...) has no options for `{stage}`; give a page with a "
            f"{kinds[0].__name__}(...)"
        )
    devices = experiment.devices
    topology = open_topology(options.topology, options.slices, megacore=options.megacore)
    mesh = make_mesh(devices.data_parallel, devices.model_parallel, devices=topology.devices)
    with jax.set_mesh(mesh):
        step = build(experiment, options.candidates)
        useful = None if step.forward is None else step.passes * count_products(step.forward[0], *step.forward[1])
        print(f"compiling the step of {stage} for {topology.name} ...", file=sys.stderr)
        return measure(stage, topology, mesh, step.lower, useful)
