"""Every test runs on eight fake CPU devices and compiles in a hurry; this must be said before jax is imported."""

import os
import signal

from hypothesis import settings

from tests.compiling import known_flags

_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # Tests run each program a few times: compiling well would cost more than it saves.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    # On a busy machine the devices' threads wait long for each other; XLA would end the process after 40 seconds.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *known_flags(_FLAGS))).strip()
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# A first example may import transformers or compile: time says nothing about right or wrong.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Tests send these to processes of their own, which must not inherit that they are ignored, as by `nohup pytest &`.
for _number, _default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _default)
