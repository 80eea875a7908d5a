"""Files of tensors in the safetensors format, with atomic writing and random access."""

import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from lamp_jax.errors import LampError
from lamp_jax.runs.json_files import atomic_write_bytes, check_fetched

DTYPES = {
    "F32": np.dtype("<f4"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U8": np.dtype("u1"),
    "U32": np.dtype("<u4"),
    "U64": np.dtype("<u8"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

TensorSpecs = Mapping[str, tuple[str, tuple[int | None, ...]]]
"""Type and shape of each tensor; None is any size."""


def write_tensors(path: Path, tensors: Mapping[str, Sequence[np.ndarray]]) -> int:
    """Writes tensors, each given as arrays to concatenate along the first axis. Returns the file's size in bytes.

    `tensors` must have wider types first, so that every tensor is aligned.
    """
    header, start = {}, 0
    for name, arrays in tensors.items():
        stop = start + sum(array.nbytes for array in arrays)
        shape = [sum(map(len, arrays)), *arrays[0].shape[1:]]
        header[name] = {"dtype": _NAMES[arrays[0].dtype], "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write_bytes(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in (array for arrays in tensors.values() for array in arrays):
            file.write(np.ascontiguousarray(array).view(np.uint8).data)
    return 8 + len(text) + start


def damaged(path: Path, what: str = "") -> LampError:
    return LampError(f"{path}: {what or 'the file'} is damaged; copy the store again, or make it again")


class TensorFile:
    """File of `write_tensors`. LampError unless it has the specified tensors with all their bytes.

    It is closed between reads, so that many of them need no file handles. FileNotFoundError where it was removed.
    """

    def __init__(self, path: Path, wanted: TensorSpecs):
        self.path = path
        with self.open() as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if length <= size else b""
        try:
            header = json.loads(text)
            self._tensors = {
                name: _tensor_location(header[name], *kind, size - 8 - length) for name, kind in wanted.items()
            }
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            check_fetched(path)
            raise damaged(path) from None
        self._start = 8 + length

    def open(self) -> IO[bytes]:
        return open(self.path, "rb", buffering=0)

    def length(self, name: str) -> int:
        """Size of a tensor's first axis."""
        return self._tensors[name][2][0]

    def read(self, file: IO[bytes], name: str, start: int, stop: int) -> bytes:
        """Bytes of a tensor from `start` to `stop` along the first axis. LampError where the file has fewer."""
        offset, width, _ = self._tensors[name]
        data = os.pread(file.fileno(), (stop - start) * width, self._start + offset + start * width)
        if len(data) != (stop - start) * width:
            raise damaged(self.path)
        return data

    def map(self, name: str, dtype: np.dtype[Any]) -> np.ndarray:
        """Memory map of a tensor."""
        offset, _, shape = self._tensors[name]
        if not all(shape):
            return np.empty(shape, dtype)
        return np.memmap(self.path, dtype, "r", self._start + offset, shape)


def _tensor_location(
    found: Any, dtype: str, shape: Sequence[int | None], size: int
) -> tuple[int, int, tuple[int, ...]]:
    """Offset of a tensor, bytes per step along the first axis, and shape. ValueError for a tensor of another spec."""
    start, stop = found["data_offsets"]
    sizes = tuple(found["shape"])
    fits = [type(one) is int and one >= 0 and one == (one if wanted is None else wanted)
            for one, wanted in zip(sizes, shape, strict=True)]  # fmt: skip
    if found["dtype"] != dtype or not all(fits) or type(start) is not int or type(stop) is not int:
        raise ValueError("another dtype or shape")
    width = DTYPES[dtype].itemsize * int(np.prod(sizes[1:], dtype=np.int64))
    if not 0 <= start <= stop <= size or stop - start != sizes[0] * width:
        raise ValueError("bytes are missing")
    return start, width, sizes
