"""Settings of all tests: eight virtual CPU devices, quick compilation. They are set before jax is imported."""

import gc
import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from tests.compiling import known_flags

_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # Tests run each program a few times: optimized compilation would cost more than it saves.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",  # halves the time; jax 0.12 does not know it
    # On a busy machine the devices' threads wait long for each other; XLA would end the process after 40 seconds.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *known_flags(_FLAGS))).strip()
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Small models are a third faster in PyTorch with one thread than with two that wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
# No test reads the Python lines of a program's operations; collecting them takes a tenth of the tracing time.
os.environ["JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS"] = "0"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"

# Tracing makes millions of small objects that live until a program is lowered: with Python's own thresholds, a fifth of
# the time goes to looking for cycles among them.
gc.set_threshold(200_000, 50, 50)


@pytest.fixture(scope="session", autouse=True)
def compiled() -> str:
    """Compilation cache on disk, kept between runs, of all workers and of the processes that tests start."""
    from lamp_jax.compiled_programs import VARIABLE, use_compilation_cache  # here, not above: the flags are set before

    directory = str(Path(__file__).parents[1] / ".pytest_cache" / "compiled")
    use_compilation_cache(directory)
    os.environ[VARIABLE] = directory
    return directory


# No deadline: a first example may import transformers or compile. `.ci/run` uses the profile `full`.
settings.register_profile("quick", deadline=None, max_examples=30)
settings.register_profile("full", deadline=None, max_examples=60)
settings.load_profile("quick")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """SIGINT and SIGHUP, which tests send to processes of their own, are not ignored by processes that a test starts.

    They may be: after `nohup pytest &`, and since a test loaded libtpu, which ignores SIGHUP in its process and thereby
    in every process that it starts (libtpu 0.0.42.1; `signal.getsignal` does not know it).
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests run first; otherwise a single worker would run them at the end (see `.ci/run`)."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
