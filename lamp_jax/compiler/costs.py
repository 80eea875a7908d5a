"""Costs of a compiled program per device: matrix products, bytes to other devices, to other slices."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from lamp_jax.compiler.program import Computation, Instruction, Program

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """Totals of all collectives of one kind in a step."""

    count: int
    bytes: int
    """Bytes of their full arrays on one device: the result of an all-gather, the operands of a reduction."""
    sent: int
    """Bytes that each device sends in ring algorithms."""


def products(program: Program) -> int:
    """FLOPs of a step's matrix products on one device: two per multiplication with a value that is not padding.

    Those of a kernel (a custom call) are the FLOPs of its cost estimate.
    """
    return sum(times * _products(computation, one) for computation, one, times in program.executed(fused=True))


def collectives(program: Program) -> dict[str, Collective]:
    """Collectives within a slice in a step, by kind. Several instructions with the same channel count as one."""
    found: dict[str, tuple[str, int, int, int]] = {}
    for computation, one, times in program.executed(fused=True):
        kind = one.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        members = group_size(one)
        if members < 2:
            continue
        channel = one.attribute("channel_id") or f"{computation.name} {one.name}"
        size = _full_bytes(kind, computation, one)
        before = found.get(channel, (kind, 0, 0, 0))
        found[channel] = (kind, max(times, before[1]), max(size, before[2]), max(_sent(kind, size, members), before[3]))
    return {
        kind: Collective(
            sum(times for _, times, _, _ in of_kind),
            sum(times * size for _, times, size, _ in of_kind),
            sum(times * sent for _, times, _, sent in of_kind),
        )
        for kind in COLLECTIVES
        if (of_kind := [one for one in found.values() if one[0] == kind])
    }


def between_slices(program: Program) -> dict[str, Collective]:
    """Collectives over the data-centre network in a step, by kind.

    libtpu compiles one program for every slice. Devices exchange data with other slices through `send` to and `recv`
    from their host; the kind and the members are attributes of the `send`.
    """
    found: dict[str, Collective] = {}
    for computation, one, times in program.executed(fused=True):
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.attributes)
        if one.opcode != "send" or kind is None:
            continue
        name = "collective-permute" if kind[1] == "ONE_TO_ONE" else kind[1].lower().replace("_", "-")
        members = slice_count(one)
        size = sum(array.bytes for operand in computation.operands(one) for array in operand.arrays)
        size *= members if name == "all-gather" else 1  # a device sends its shard
        before = found.get(name, Collective(0, 0, 0))
        sent = size * (members - 1) // members if name == "all-to-all" else _sent(name, size, members)
        found[name] = Collective(before.count + times, before.bytes + times * size, before.sent + times * sent)
    return found


def slice_count(one: Instruction) -> int:
    """Number of slices in a group, from `{1,2}x{0:7}`, `{1:4}x{0:7}` or `{{100000,200000}}` (100000 x slice +
    device)."""
    target = one.attributes.partition("_xla_megascale_target=")[2].lstrip('"')
    if pairs := re.match(r"\{(?:\{\d+->\d+\},?)+\}", target):
        return len({int(number) // 100000 for number in re.findall(r"\d+", pairs[0])})
    if listed := re.match(r"\{\{([\d,]+)\}", target):
        return len({int(number) // 100000 for number in listed[1].split(",")})
    slices = re.match(r"\{([\d,:]+)\}x", target)
    assert slices, one.attributes
    ends = [[int(number) for number in part.split(":")] for part in slices[1].split(",")]
    return sum(part[-1] - part[0] + 1 for part in ends)


def group_size(one: Instruction) -> int:
    """Number of devices in a group, from `{{0,1},{2,3}}`, `[4,2]<=[8]`, `mesh['x'=4,'y'=2] {'x'}` or a permutation."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", one.attributes):
        return 1 + pairs[1].count("},{")
    groups = one.attributes.partition("replica_groups=")[2]
    if listed := re.match(r"\{\{([\d,]*)\}", groups):
        return 1 + listed[1].count(",")
    if compact := re.match(r"\[\d+,(\d+)\]", groups):
        return int(compact[1])
    if named := re.match(r"mesh\[([^\]]*)\] \{([^}]*)\}", groups):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    return 1


def _sent(kind: str, size: int, members: int) -> int:
    """Bytes sent by ring algorithms: each device forwards all shards but one, twice for an all-reduce."""
    if kind == "collective-permute":
        return size
    share = size * (members - 1) // members
    return {"all-reduce": 2 * share, "all-to-all": share // 2}.get(kind, share)


def _full_bytes(kind: str, computation: Computation, one: Instruction) -> int:
    if kind == "all-gather":
        arrays = one.arrays[len(one.arrays) // 2 :] if one.opcode.endswith("-start") else one.arrays
        return sum(array.bytes for array in arrays)
    return sum(array.bytes for operand in computation.operands(one) for array in operand.arrays)


def _products(computation: Computation, one: Instruction) -> int:
    if one.opcode == "convolution":
        return _convolution(computation, one)
    if one.opcode == "custom-call":
        return one.estimate[0] if one.estimate else 0
    return _dot(computation, one) if one.opcode == "dot" else 0


def _dot(computation: Computation, one: Instruction) -> int:
    left = computation.by_name[one.operands[0]].arrays[0].sizes
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
    axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
    return 2 * math.prod(one.arrays[0].sizes) * math.prod(left[axis] for axis in axes)


def _convolution(computation: Computation, one: Instruction) -> int:
    """FLOPs of a convolution, the form of products on TPUs; only window positions inside the operand count.

    FLOPs = 2 x batch x output features x input features of a group x the valid steps of each spatial axis.
    """
    left, right = (computation.by_name[name].arrays[0].sizes for name in one.operands[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    assert labels, one.attributes
    of_left, of_right, of_result = labels.groups()
    result = one.arrays[0].sizes
    total = 2 * result[of_result.index("b")] * result[of_result.index("f")] * right[of_right.index("i")]
    window = _window(one.attributes)
    for axis in sorted(letter for letter in of_result if letter.isdigit()):
        number = int(axis)
        step = {name: values[number] for name, values in window.items() if number < len(values)}
        total *= _valid_steps(
            left[of_left.index(axis)], right[of_right.index(axis)], result[of_result.index(axis)], step
        )
    return total


def _window(attributes: str) -> dict[str, list[str]]:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    parts = (part.partition("=") for part in found[1].split()) if found else ()
    return {name: values.split("x") for name, _, values in parts}


def _valid_steps(size: int, window: int, outputs: int, step: Mapping[str, str]) -> int:
    """Number of pairs of output and window positions at one of the `size` elements of the left operand."""
    stride, dilation = int(step.get("stride", 1)), int(step.get("lhs_dilate", 1))
    reach, low = int(step.get("rhs_dilate", 1)), int(step.get("pad", "0_0").split("_")[0])
    span = (size - 1) * dilation + 1
    return sum(
        0 <= place < span and place % dilation == 0
        for output in range(outputs)
        for place in range(output * stride - low, output * stride - low + window * reach, reach)
    )
