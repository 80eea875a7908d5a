"""Parsing of a compiled program in HLO text: its instructions, and the number of times each runs."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "c64": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]+\d*[a-z\d]*)\[([\d,]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ([a-z][a-z\-]*)\(")
_CALLED = re.compile(r"(?:calls|body|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_LAYOUT = re.compile(r"\{([\d,]*)(?::.*?T\(([\d,]+)\))?")
_ESTIMATE = re.compile(r'"cost_estimate":\{"flops":"(\d+)","transcendentals":"\d+","bytes_accessed":"(\d+)"')


@dataclass(frozen=True)
class HloArray:
    """Type and sizes of an array, and whether it is in the chip's main memory (HBM)."""

    dtype: str
    sizes: tuple[int, ...]
    in_hbm: bool
    layout: str = ""
    """Order of the axes, the last one first, and tiles, such as `{1,0:T(8,128)(2,1)}`."""

    @property
    def bytes(self) -> int:
        """Number of bytes without the padding of tiles."""
        return int(math.prod(self.sizes) * self._width)

    @property
    def stored(self) -> int:
        """Number of bytes in memory: the last axes of the layout are padded to complete tiles."""
        found = _LAYOUT.match(self.layout)
        if found is None or not found[2]:
            return self.bytes
        sizes = [self.sizes[int(axis)] for axis in found[1].split(",") if axis]
        tile = [int(size) for size in reversed(found[2].split(","))]
        sizes += [1] * (len(tile) - len(sizes))
        padded = [
            -(-size // tile[place]) * tile[place] if place < len(tile) else size for place, size in enumerate(sizes)
        ]
        return int(math.prod(padded) * self._width)

    @property
    def _width(self) -> float:
        width = _BYTES.get(self.dtype)
        return int(re.sub(r"\D", " ", self.dtype).split()[0]) / 8 if width is None else width


@dataclass(frozen=True)
class Instruction:
    """Instruction: one line of a computation."""

    name: str
    opcode: str
    arrays: tuple[HloArray, ...]
    """Its result: one array, or those of a tuple."""
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def called(self) -> list[str]:
        """Computations that the instruction runs, without the comparators and sums of reductions."""
        if self.opcode in {"reduce", "sort", "scatter", "all-reduce", "reduce-scatter", "reduce-window", "map"}:
            return []
        names = _CALLED.findall(self.attributes)
        for branches in _BRANCHES.findall(self.attributes):
            names += [name.strip(" %") for name in branches.split(",")]
        return names

    @property
    def target(self) -> str:
        """Name of the function of a custom call; empty for other instructions."""
        return self.attribute("custom_call_target").strip('"')

    @property
    def estimate(self) -> tuple[int, int] | None:
        """FLOPs and bytes of a kernel by its author's cost estimate; None where it has none."""
        found = _ESTIMATE.search(self.attributes)
        return (int(found[1]), int(found[2])) if found else None

    def attribute(self, name: str) -> str:
        """Value of `name=`, up to the next space or comma; empty where missing."""
        found = re.search(rf"\b{name}=([^\s,]+)", self.attributes)
        return found[1] if found else ""


@dataclass
class Computation:
    """Instructions of one function of the program, in the order of execution."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {one.name: one for one in self.instructions}

    @property
    def root(self) -> Instruction:
        return next(one for one in self.instructions if one.is_root)

    def operands(self, one: Instruction) -> list[Instruction]:
        return [self.by_name[name] for name in one.operands if name in self.by_name]

    def source(self, name: str) -> Instruction:
        """Instruction whose value an instruction copies; itself where it computes one."""
        one = self.by_name[name]
        while one.opcode in {"copy", "bitcast"} and one.operands[0] in self.by_name:
            one = self.by_name[one.operands[0]]
        return one

    def element(self, name: str, place: int) -> str:
        """Name of the element of a tuple; of the tuple itself where it is not made here."""
        one = self.source(name)
        return one.operands[place] if one.opcode == "tuple" else name

    def constant(self, name: str) -> int | None:
        """Value of a constant integer; None for anything else."""
        one = self.source(name) if name in self.by_name else None
        found = re.match(r"constant\((-?\d+)\)", one.attributes) if one else None
        return int(found[1]) if found else None

    def users(self, name: str) -> list[Instruction]:
        return [one for one in self.instructions if name in one.operands]


class Program:
    """All computations of a compiled program: `Program(compiled.as_text())`."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        current: Computation | None = None
        for line in text.splitlines():
            if header := _HEADER.match(line):
                current = self.computations.setdefault(header[2], Computation(header[2]))
                self.entry = header[2] if header[1] else self.entry
            elif line.startswith("}"):
                current = None
            elif current and (start := _INSTRUCTION.match(line)):
                current.instructions.append(_parse(line, start))

    def executed(self, *, fused: bool) -> Iterator[tuple[Computation, Instruction, int]]:
        """Every instruction with its computation and number of runs; with `fused`, also those inside fusions.

        A loop runs as many times as its condition's constant says, including loops that may end earlier (searches).
        """
        yield from self._walk(self.computations[self.entry], 1, fused)

    def _walk(
        self, computation: Computation, times: int, fused: bool
    ) -> Iterator[tuple[Computation, Instruction, int]]:
        for one in computation.instructions:
            yield computation, one, times
            if one.opcode == "fusion" and not fused:
                continue
            inner = times * (self.trips(computation, one) if one.opcode == "while" else 1)
            for name in one.called:
                if name in self.computations:
                    yield from self._walk(self.computations[name], inner, fused)

    def trips(self, computation: Computation, loop: Instruction) -> int:
        """Number of runs of a loop's body, at least 1.

        The bound is the largest integer constant in its condition; a counter in the condition that does not start at 0
        or advances by more than 1 is considered where both are constants.
        """
        start, step = self._counter(computation, loop)
        return max(1, -(-(self._bound(loop) - start) // step))

    def _counter(self, computation: Computation, loop: Instruction) -> tuple[int, int]:
        """First value and increment of a loop's counter; 0 and 1 where they are not constants."""
        body = self.computations[loop.attribute("body").lstrip("%")]
        condition = self.computations[loop.attribute("condition").lstrip("%")]
        for one in condition.instructions:
            if one.opcode != "get-tuple-element" or one.arrays[0].sizes or one.arrays[0].dtype not in {"s32", "u32"}:
                continue
            place = int(one.attribute("index"))
            start = computation.constant(computation.element(loop.operands[0], place))
            added = body.source(body.element(body.root.name, place))
            step = next((value for name in added.operands if (value := body.constant(name)) is not None), None)
            if added.opcode == "add" and start is not None and step:
                return start, step
        return 0, 1

    def _bound(self, loop: Instruction) -> int:
        bounds = [1]
        names = [loop.attribute("condition").lstrip("%")]
        while names:
            computation = self.computations[names.pop()]
            for one in computation.instructions:
                names += [name for name in one.called if name in self.computations]
                if one.opcode == "constant" and one.arrays[0].dtype in {"s32", "u32"} and not one.arrays[0].sizes:
                    bounds += [int(number) for number in re.findall(r"constant\((\d+)\)", one.attributes)]
        return max(bounds)


def _parse(line: str, start: re.Match) -> Instruction:
    shape = line[start.end() :]
    end = _closing(shape) + 1 if shape.startswith("(") else 0
    opcode = _OPCODE.search(shape, max(end - 1, 0) if end else 0)
    if opcode is None:
        return Instruction(start[2], "", (), (), line, bool(start[1]))
    arrays = tuple(
        HloArray(dtype, tuple(int(size) for size in sizes.split(",") if size), "S(" not in layout, layout)
        for dtype, sizes, layout in _ARRAY.findall(shape[: opcode.start()])
    )
    inside = shape[opcode.end() - 1 :]
    close = _closing(inside)
    operands = tuple(re.findall(r"%([\w.\-]+)", inside[: close + 1]))
    attributes = f"{opcode[1]}{inside}" if opcode[1] in {"constant", "parameter"} else inside[close + 1 :]
    return Instruction(start[2], opcode[1], arrays, operands, attributes, bool(start[1]))


def _closing(text: str) -> int:
    """Index of the bracket that closes the first one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return place
    return len(text) - 1
