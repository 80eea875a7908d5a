"""Report of `lamp compile` on a step: memory, costs, and the TPU resource that bounds its speed."""

import math
import re
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax

from lamp_jax.compiler import costs
from lamp_jax.compiler.chips import Topology, read_size
from lamp_jax.compiler.costs import Collective
from lamp_jax.compiler.program import Program
from lamp_jax.compiler.traffic import traffic as hbm_traffic

GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Use of one device's HBM in bytes."""

    arguments: int
    """Parameters, optimizer state, the batch."""
    temporaries: int
    """Temporaries of the step: activations, gradients, gathered weights; and the program itself."""
    peak: int
    """Sum of both; for a program that does not fit, the need reported by the compiler, all of it as temporaries."""
    available: int
    """Bytes that a program may use, as the compiler reports."""
    fits: bool
    """Whether the compiler accepts the program."""


@dataclass(frozen=True)
class Roofline:
    """Lower bounds of a step's seconds, by resource: products, memory, links to neighbours, network between slices.

    compute = FLOPs / peak, hbm = bytes / bandwidth, interconnect = bytes sent in a ring / both directions of a link,
    network = bytes sent to other slices / a device's share of the data-centre network.
    """

    compute: float
    hbm: float
    interconnect: float
    network: float

    @property
    def bound(self) -> str:
        return max(asdict(self), key=lambda part: getattr(self, part))

    @property
    def seconds(self) -> float:
        return max(asdict(self).values())


@dataclass(frozen=True)
class StepReport:
    """Costs of a compiled step."""

    stage: str
    topology: str
    """Topology of one slice."""
    slices: int
    chips: int
    """Number of chips in all slices."""
    devices: int
    """Number of devices of all chips, each of which has one or two."""
    mesh: Mapping[str, int]
    memory: Memory
    flops: int
    """FLOPs of matrix products on one device."""
    hbm_bytes: int
    collectives: Mapping[str, Collective]
    """Collectives within a slice."""
    between_slices: Mapping[str, Collective]
    roofline: Roofline | None
    mfu: float | None
    """Upper bound of the model FLOPs utilization; recomputed products (remat) do not count."""
    compile_seconds: float

    @property
    def sent(self) -> int:
        """Bytes that a device sends to others of its slice."""
        return sum(one.sent for one in self.collectives.values())

    @property
    def sent_between_slices(self) -> int:
        """Bytes that a device sends to other slices."""
        return sum(one.sent for one in self.between_slices.values())

    def as_json(self) -> dict[str, Any]:
        found = asdict(self) | {"fits": self.memory.fits}
        if self.roofline:
            found["roofline"] = asdict(self.roofline) | {"bound": self.roofline.bound, "seconds": self.roofline.seconds}
        return found


def compile_step(lowered: Callable[[], Any]) -> tuple[Any, str, float]:
    """Compiled program, or None with the compiler's message where it does not fit; and seconds of lowering and
    compiling."""
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():  # jax 0.10.2 writes these to its cache and reads none
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
            compiled, words = lowered().compile(), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        compiled, words = None, str(error)
    return compiled, words, time.perf_counter() - start


def measure_memory(compiled: Any, words: str, available: int) -> Memory:
    """Memory use of a program; where it does not fit, the need reported by the compiler."""
    if compiled is None:
        sizes = re.findall(r"(?:Used |required for [^()]*\()([\d.]+[KMGT])", words)
        needed = max([available + 1, *map(read_size, sizes)])
        return Memory(0, needed, needed, available, fits=False)
    found = compiled.memory_analysis()
    temporaries = found.temp_size_in_bytes + found.generated_code_size_in_bytes
    temporaries += found.output_size_in_bytes - found.alias_size_in_bytes
    arguments = found.argument_size_in_bytes
    return Memory(arguments, temporaries, arguments + temporaries, available, fits=True)


def count_products(function: Callable[..., Any], *arguments: Any) -> int:
    """FLOPs of a function's matrix products over all devices, with loops counted by their length."""
    return _count_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count_jaxpr(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = math.prod(left[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * inner
            continue
        if equation.primitive.name == "pallas_call":
            total += equation.params["cost_estimate"].flops if equation.params["cost_estimate"] else 0
            continue
        if equation.primitive.name == "cond":  # one branch is computed, and those of different platforms are alike
            total += max(_count_jaxpr(branch.jaxpr) for branch in equation.params["branches"])
            continue
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        times *= _shards(equation) if equation.primitive.name == "shard_map" else 1
        inside = (equation.params.get(name) for name in ("jaxpr", "call_jaxpr", "fun_jaxpr", "body_jaxpr"))
        part = next((one for one in inside if one is not None), None)
        total += times * _count_jaxpr(getattr(part, "jaxpr", part)) if part is not None else 0
    return total


def _shards(equation: Any) -> int:
    """Number of devices among which a `shard_map` divides its work: its function is that of one device."""
    axes = set(jax.tree.leaves([tuple(spec) for spec in equation.params["in_specs"]]))
    return math.prod(equation.params["mesh"].shape[axis] for axis in axes)


def measure(
    stage: str, topology: Topology, mesh: jax.sharding.Mesh, lowered: Callable[[], Any], useful: int | None
) -> StepReport:
    """Report of a step, which is compiled. `useful`: FLOPs that count for the MFU, over all devices; None: all."""
    compiled, words, seconds = compile_step(lowered)
    memory = measure_memory(compiled, words, topology.hbm)
    shape = {str(name): size for name, size in mesh.shape.items()}
    where = (stage, topology.name, topology.slices, topology.chips, mesh.size, shape, memory)
    if compiled is None:
        return StepReport(*where, 0, 0, {}, {}, None, None, seconds)
    program, device = Program(compiled.as_text()), topology.device
    flops, traffic = costs.products(program), hbm_traffic(program)
    within, between = costs.collectives(program), costs.between_slices(program)
    roofline = Roofline(
        flops / device.flops,
        traffic / device.hbm_speed,
        sum(one.sent for one in within.values()) / (2 * device.link_speed),
        sum(one.sent for one in between.values()) / device.network_speed if between else 0.0,
    )
    own = flops if useful is None else useful / mesh.size
    mfu = own / device.flops / roofline.seconds
    return StepReport(*where, flops, traffic, within, between, roofline, mfu, seconds)


def describe(report: StepReport) -> str:
    """Text of a report for the terminal."""
    memory, roofline = report.memory, report.roofline
    mesh = " x ".join(f"{name} {size}" for name, size in report.mesh.items())
    slices = f"{report.slices} slices of " if report.slices > 1 else ""
    lines = [
        f"{report.stage} on {slices}{report.topology}: {_count_noun(report.devices, 'device')} on "
        f"{_count_noun(report.chips, 'chip')}, mesh {mesh}; compiled in {report.compile_seconds:.0f} s",
        f"memory of a device {memory.peak / GIB:6.2f} GiB of {memory.available / GIB:.2f}: arguments "
        f"{memory.arguments / GIB:.2f}, temporaries {memory.temporaries / GIB:.2f}"
        + ("" if memory.fits else "; it does not fit"),
    ]
    if roofline is None:
        return "\n".join(lines)
    lines.append(f"products           {report.flops / 1e12:6.2f} TFLOP      at least {roofline.compute * 1e3:9.2f} ms")
    lines.append(f"to and from HBM    {report.hbm_bytes / 1e9:6.2f} GB         at least {roofline.hbm * 1e3:9.2f} ms")
    lines += _traffic_lines("between devices", report.sent, roofline.interconnect, report.collectives)
    if report.slices > 1:
        lines += _traffic_lines("between slices", report.sent_between_slices, roofline.network, report.between_slices)
    lines.append(f"bound by {roofline.bound}; MFU at most {report.mfu:.0%}")
    return "\n".join(lines)


def _count_noun(number: int, of: str) -> str:
    return f"{number} {of}" + ("s" if number != 1 else "")


def _traffic_lines(what: str, sent: int, seconds: float, collectives: Mapping[str, Collective]) -> list[str]:
    lines = [f"{what:18} {sent / 1e9:6.2f} GB sent    at least {seconds * 1e3:9.2f} ms"]
    return lines + [f"  {kind:18} {one.count:6} times, {one.bytes / 1e9:.3f} GB" for kind, one in collectives.items()]
