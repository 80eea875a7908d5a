"""Traffic of a compiled program between one device and its main memory (HBM), in bytes."""

import math
from collections.abc import Iterable

from lamp_jax.compiler.program import Computation, HloArray, Instruction, Program

# Instructions that move no bytes themselves: names, tuples, loops (their bodies do), ends of asynchronous operations.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"}
_FREE |= {"partition-id", "replica-id", "iota", "opt-barrier", "domain", "add-dependency", ""}

# Custom calls that move no bytes: memory that is not initialized, adjacent arrays as one, a promise about indices.
_FREE_CALLS = {"AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound"}

# Changes of an array's form: within a fusion the result is not stored, and only the slice that is used is read.
_RESHAPING = {"bitcast", "reshape", "copy", "convert"}

_SLICING = {"dynamic-slice", "slice", "gather"}


def traffic(program: Program) -> int:
    """Bytes of a step to and from one device's HBM, read and written by all instructions, fusions and kernels.

    Arrays count with the padding of their tiles; where a slice of an array is read or replaced, only the slice counts.
    An estimate: every instruction reads an operand once, and arrays in the core's fast memory do not count.
    """
    total = 0
    for computation, one, times in program.executed(fused=False):
        if one.opcode not in _FREE and not one.opcode.endswith("-done"):
            total += times * instruction_traffic(program, computation, one)
    return total


def instruction_traffic(program: Program, computation: Computation, one: Instruction) -> int:
    """Bytes of HBM that one run of an instruction reads and writes."""
    operands = computation.operands(one)
    if one.opcode in {"send", "recv"}:  # both name the array, a context and a token
        return _in_hbm(one.arrays[:1])
    if one.opcode == "custom-call":
        return _call_traffic(one, operands)
    results = _results(one, len(operands))
    if one.opcode.removesuffix("-start") in _SLICING:
        return _part(results, operands[0].arrays[0]) + _in_hbm(results)
    if one.opcode == "dynamic-update-slice":
        return 2 * _part(operands[1].arrays, operands[1].arrays[0])
    if one.opcode == "fusion" and one.called:
        inside = program.computations[one.called[0]]
        read = sum(_operand_traffic(program, inside, number, operand.arrays) for number, operand in enumerate(operands))
        return read + _result_traffic(program, inside, inside.root, one.arrays)
    return sum(_in_hbm(operand.arrays) for operand in operands) + _in_hbm(results)


def _results(one: Instruction, operands: int) -> tuple[HloArray, ...]:
    """Arrays that an instruction writes; the start of an asynchronous operation also names operands and a context."""
    if not one.opcode.endswith("-start") or len(one.arrays) <= operands:
        return one.arrays
    if one.opcode == "copy-start":  # result, operand, context
        return one.arrays[:1]
    return one.arrays[operands : 2 * operands]


def _call_traffic(one: Instruction, operands: list[Instruction]) -> int:
    """Bytes of HBM of a custom call: its operands and results once, or a kernel's cost estimate.

    The estimate does not know which arrays the compiler keeps in fast memory: those in HBM have their share of it.
    """
    if one.target in _FREE_CALLS:
        return 0
    arrays = [array for operand in operands for array in operand.arrays] + list(one.arrays)
    once = _in_hbm(arrays)
    if not once or one.estimate is None:
        return once
    return (
        one.estimate[1] * sum(array.bytes for array in arrays if array.in_hbm) // sum(array.bytes for array in arrays)
    )


def _in_hbm(arrays: Iterable[HloArray]) -> int:
    return sum(array.stored for array in arrays if array.in_hbm)


def _part(parts: Iterable[HloArray], of: HloArray) -> int:
    """Bytes of HBM of slices of an array, with their share of its padding."""
    if not of.in_hbm or not of.bytes:
        return 0
    return sum(math.prod(part.sizes) for part in parts) * of.stored // math.prod(of.sizes)


def _operand_traffic(program: Program, inside: Computation, number: int, arrays: tuple[HloArray, ...]) -> int:
    """Bytes that a fusion reads of one operand: of slices, if it uses only those; 0, if it only replaces some."""
    total = _in_hbm(arrays)
    parameter = _parameter(inside, number)
    waiting, read = [parameter.name] if parameter and total else [], 0
    while waiting:
        name = waiting.pop()
        for user in inside.users(name):
            if user.opcode in _RESHAPING:
                waiting.append(user.name)
            elif user.opcode in _SLICING:
                read += _part(user.arrays, arrays[0])
            elif user.opcode == "fusion" and user.called:
                inner = program.computations[user.called[0]]
                places = [place for place, used in enumerate(user.operands) if used == name]
                if any(_only_copies(program, inner, place) for place in places):
                    waiting.append(user.name)
                else:
                    read += sum(_operand_traffic(program, inner, place, arrays) for place in places)
            elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
                return total
    return min(read, total)


def _only_copies(program: Program, inside: Computation, number: int) -> bool:
    """Whether a fusion inside another only copies this operand, so that a slice of its result reads a slice of it."""
    one = inside.root
    while one.opcode in _RESHAPING and one.operands[0] in inside.by_name:
        one = inside.by_name[one.operands[0]]
    if one.opcode == "fusion" and one.called and len(one.operands) == 1:
        inner = program.computations[one.called[0]]
        return _only_copies(program, inner, 0) and inside.by_name[one.operands[0]] is _parameter(inside, number)
    return one is _parameter(inside, number)


def _parameter(inside: Computation, number: int) -> Instruction | None:
    return next((one for one in inside.instructions if f"parameter({number})" in one.attributes), None)


def _result_traffic(program: Program, inside: Computation, root: Instruction, arrays: tuple[HloArray, ...]) -> int:
    """Bytes that a fusion writes of its results: of the slice, if it only replaces one."""
    if root.opcode == "tuple":
        parts = (inside.by_name[name] for name in root.operands)
        return sum(_result_traffic(program, inside, part, (array,)) for part, array in zip(parts, arrays, strict=False))
    total = _in_hbm(arrays)
    if root.opcode in {"bitcast", "reshape"} and root.operands[0] in inside.by_name:
        return _result_traffic(program, inside, inside.by_name[root.operands[0]], arrays)
    if root.opcode == "fusion" and root.called:
        inner = program.computations[root.called[0]]
        return _result_traffic(program, inner, inner.root, arrays)
    if root.opcode == "dynamic-update-slice" and total:
        return min(_part(inside.by_name[root.operands[1]].arrays, arrays[0]), total)
    return total
