"""Every test runs on eight fake CPU devices; this must be said before jax is imported."""

import os

from hypothesis import settings

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# A first example may import transformers or compile: time says nothing about right or wrong.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
