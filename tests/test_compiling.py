"""XLA flags: only those that the installed jax does not support are left out."""

import pytest

from tests.compiling import known_flags

KNOWN = "--xla_backend_optimization_level=0"


def test_flags_that_jax_does_not_know_are_left_out(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    assert known_flags(["--xla_no_such_flag=1", KNOWN, "--xla_nor_this=true"]) == [KNOWN]


def test_a_flag_with_a_wrong_value_is_an_error(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    with pytest.raises(RuntimeError, match="xla_backend_optimization_level=none"):
        known_flags(["--xla_backend_optimization_level=none"])
