"""Limits of the machine, measured beside the cases: peak matmul throughput and memory copies."""

import contextlib
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lamp_jax.bench.cases import Size
from lamp_jax.bench.libraries import LIBRARIES
from lamp_jax.bench.workers import FailedSideError, Workers
from lamp_jax.errors import LampError
from lamp_jax.runs.workers import available_cores

_PRODUCT: dict[Size, int] = {"smoke": 128, "full": 2048, "gpu": 8192}
_COPY: dict[Size, int] = {"smoke": 2**20, "full": 2**28, "gpu": 2**32}
_DTYPES = ("float32", "bfloat16")


def measure_limits(size: Size, workers: Workers) -> dict[str, dict[str, float]]:
    """Peak GFLOP/s of square matrix products by library and type, and GB/s of a copy (read and written)."""
    limits = {"lamp": workers.of("lamp").call(_jax_limits, size)}
    if not LIBRARIES["transformers"].problem:
        with contextlib.suppress(FailedSideError):  # torch without CUDA; the peers' rows say so
            limits["transformers"] = workers.of("transformers").call(_torch_limits, size)
    best = {name: max(one[name] for one in limits.values()) for name in _DTYPES}
    return limits | {"best": best}


def describe_machine() -> dict[str, Any]:
    """Processor, cores and system."""
    return {
        "processor": _processor(),
        "cores": available_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    named = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {name.strip(): value.strip() for name, value in named.items()}
    name = fields.get("model name") or platform.processor() or "unknown processor"
    flags = set(fields.get("flags", "").split())
    vectors = [flag for flag in ("avx2", "avx512f", "amx_bf16") if flag in flags]
    return f"{name} ({', '.join(vectors)})" if vectors else name


def _best(run: Callable[[], Any], times: int = 8) -> float:
    run()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _jax_limits(size: Size) -> dict[str, float]:
    import jax
    import jax.numpy as jnp

    from lamp_jax.models.kernels import einsum

    if size == "gpu" and jax.default_backend() != "gpu":
        raise LampError(
            f"--size gpu: jax computes on {jax.default_backend()}; install lamp_jax[cuda] on a CUDA machine"
        )
    length, copied, found = _PRODUCT[size], _COPY[size], {}
    for name in _DTYPES:
        values = jax.random.normal(jax.random.key(0), (length, length), jnp.float32).astype(name)
        product = jax.jit(lambda a: einsum("ij,jk->ik", a, a, dtype=a.dtype))  # as the models multiply
        found[name] = 2 * length**3 / _best(lambda: product(values).block_until_ready()) / 1e9  # noqa: B023
    array = jnp.zeros(copied // 4, jnp.float32)
    found["copy"] = 2 * copied / _best(lambda: jnp.copy(array).block_until_ready()) / 1e9
    return found


def _torch_limits(size: Size) -> dict[str, float]:
    from lamp_jax.bench.torch_side import start_torch

    torch = start_torch(cuda=size == "gpu")
    place = "cuda" if size == "gpu" else "cpu"
    wait: Callable[[], Any] = torch.cuda.synchronize if size == "gpu" else lambda: None
    length, copied, found = _PRODUCT[size], _COPY[size], {}
    for name in _DTYPES:
        values = torch.randn(length, length, device=place).to(getattr(torch, name))
        found[name] = 2 * length**3 / _best(lambda: (values @ values, wait())) / 1e9  # noqa: B023
    array = torch.zeros(copied // 4, device=place)
    found["copy"] = 2 * copied / _best(lambda: (array.clone(), wait())) / 1e9
    return found
