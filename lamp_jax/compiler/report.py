"""What `lamp compile` says of a step: whether it fits, what it costs, and which part of a chip it waits for."""

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax

from lamp_jax.compiler import costs
from lamp_jax.compiler.chips import Chip
from lamp_jax.compiler.costs import Collective
from lamp_jax.compiler.program import Program

GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes of one chip's HBM."""

    arguments: int
    """Parameters, optimizer state, the batch."""
    temporaries: int
    """What lives within the step: activations, gradients, gathered weights; and the program itself."""
    peak: int
    """All at once; of a program that does not fit, what the compiler says it would need, all of it as temporaries."""
    available: int

    @property
    def fits(self) -> bool:
        return self.peak <= self.available


@dataclass(frozen=True)
class Roofline:
    """Seconds that a step takes at least, by what it waits for: each chip's products, its memory, its neighbours.

    compute = FLOPs / peak, hbm = bytes / bandwidth, interconnect = bytes sent in a ring / both directions of a link.
    """

    compute: float
    hbm: float
    interconnect: float

    @property
    def bound(self) -> str:
        return max(asdict(self), key=lambda part: getattr(self, part))

    @property
    def seconds(self) -> float:
        return max(asdict(self).values())


@dataclass(frozen=True)
class Report:
    """A compiled step."""

    stage: str
    topology: str
    chips: int
    mesh: Mapping[str, int]
    memory: Memory
    flops: int
    """Of matrix products, on one chip."""
    hbm_bytes: int
    collectives: Mapping[str, Collective]
    roofline: Roofline | None
    mfu: float | None
    """The share of the peak that the step's own products can reach: those that are computed again do not count."""
    compile_seconds: float

    @property
    def sent(self) -> int:
        """Bytes that a chip sends to others."""
        return sum(one.sent for one in self.collectives.values())

    def as_json(self) -> dict[str, Any]:
        found = asdict(self) | {"fits": self.memory.fits}
        if self.roofline:
            found["roofline"] = asdict(self.roofline) | {"bound": self.roofline.bound, "seconds": self.roofline.seconds}
        return found


def compile_step(lowered: Callable[[], Any]) -> tuple[Any, str, float]:
    """Lowers and compiles: the program, or None with the compiler's words where it does not fit, and the seconds."""
    start = time.perf_counter()
    try:
        compiled, words = lowered().compile(), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        compiled, words = None, str(error)
    return compiled, words, time.perf_counter() - start


def measure_memory(compiled: Any, words: str, chip: Chip) -> Memory:
    """What the program needs; where it does not fit, what the compiler says it would have needed."""
    if compiled is None:
        sizes = re.findall(r"(?:Used |required for [^()]*\()([\d.]+)([KMG])", words)
        needed = max([chip.usable + 1, *(_bytes(*size) for size in sizes)])
        return Memory(0, needed, needed, chip.usable)
    found = compiled.memory_analysis()
    temporaries = found.temp_size_in_bytes + found.generated_code_size_in_bytes
    temporaries += found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(found.argument_size_in_bytes, temporaries, found.argument_size_in_bytes + temporaries, chip.usable)


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * {"K": 2**10, "M": 2**20, "G": 2**30}[unit])


def count_products(function: Callable[..., Any], *arguments: Any) -> int:
    """FLOPs of the matrix products that a function asks for, over all devices; loops by their length."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = math.prod(left[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * inner
            continue
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        inside = (equation.params.get(name) for name in ("jaxpr", "call_jaxpr", "fun_jaxpr", "body_jaxpr"))
        part = next((one for one in inside if one is not None), None)
        total += times * _count(getattr(part, "jaxpr", part)) if part is not None else 0
    return total


def measure(
    stage: str, topology: str, chip: Chip, mesh: jax.sharding.Mesh, lowered: Callable[[], Any], useful: int | None
) -> Report:
    """Compiles a step and says what it costs. `useful`: FLOPs that count for the MFU, over all chips; None: all."""
    compiled, words, seconds = compile_step(lowered)
    memory = measure_memory(compiled, words, chip)
    shape = {str(name): size for name, size in mesh.shape.items()}
    if compiled is None:
        return Report(stage, topology, mesh.size, shape, memory, 0, 0, {}, None, None, seconds)
    program = Program(compiled.as_text())
    flops, traffic, exchanged = costs.products(program), costs.traffic(program), costs.collectives(program)
    sent = sum(one.sent for one in exchanged.values())
    roofline = Roofline(flops / chip.flops, traffic / chip.hbm_speed, sent / (2 * chip.link_speed))
    own = flops if useful is None else useful / mesh.size
    mfu = own / chip.flops / roofline.seconds
    return Report(stage, topology, mesh.size, shape, memory, flops, traffic, exchanged, roofline, mfu, seconds)


def describe(report: Report) -> str:
    """The report as a reader wants it."""
    memory, roofline = report.memory, report.roofline
    mesh = " x ".join(f"{name} {size}" for name, size in report.mesh.items())
    lines = [
        f"{report.stage} on {report.topology}: {report.chips} chips, mesh {mesh}; compiled in "
        f"{report.compile_seconds:.0f} s",
        f"memory of a chip   {memory.peak / GIB:6.2f} GiB of {memory.available / GIB:.2f}: arguments "
        f"{memory.arguments / GIB:.2f}, temporaries {memory.temporaries / GIB:.2f}"
        + ("" if memory.fits else "; it does not fit"),
    ]
    if roofline is None:
        return "\n".join(lines)
    lines.append(f"products           {report.flops / 1e12:6.2f} TFLOP      at least {roofline.compute * 1e3:9.2f} ms")
    lines.append(f"to and from HBM    {report.hbm_bytes / 1e9:6.2f} GB         at least {roofline.hbm * 1e3:9.2f} ms")
    lines.append(
        f"between chips      {report.sent / 1e9:6.2f} GB sent    at least {roofline.interconnect * 1e3:9.2f} ms"
    )
    for kind, one in report.collectives.items():
        lines.append(f"  {kind:18} {one.count:6} times, {one.bytes / 1e9:.3f} GB")
    lines.append(f"bound by {roofline.bound}; MFU at most {report.mfu:.0%}")
    return "\n".join(lines)
