"""Compilation ahead: programs are compiled before they are needed, once, and an error of the compiler is not lost."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamp_jax.inputs.batches import Example, TrainingBatches
from lamp_jax.runs import processes
from lamp_jax.training.ahead import compiled_ahead, first_steps


@pytest.mark.parametrize("start", [0, 5, 17])
def test_every_shape_of_the_coming_epoch_has_a_step(start):
    examples = [Example(str(number), [1] * (number % 13 + 1), [1]) for number in range(45)]
    batches = TrainingBatches(examples, batch_size=4, max_length=16, buckets=(4, 8, 16), seed=0)
    steps = first_steps(batches, start, 100)
    assert steps[0] == start
    found = [batches[step].source.shape for step in steps]
    assert len(set(found)) == len(found)
    assert set(found) == {batches[step].source.shape for step in range(start, start + len(batches))}
    assert first_steps(batches, start, start + 1) == [start]


def test_a_call_runs_the_program_that_was_compiled_ahead():
    compiled = []

    def listen(event: str, seconds: float, **facts) -> None:
        if "backend_compile" in event:
            compiled.append((facts["fun_name"], threading.current_thread() is threading.main_thread()))

    function = jax.jit(lambda x: jnp.sin(x) + len(x))
    inputs = {size: jnp.arange(float(size)) for size in (3, 4, 5)}
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with compiled_ahead((size, function.lower(x)) for size, x in inputs.items()) as wait:
            for size, x in inputs.items():
                wait(size)
                np.testing.assert_allclose(function(x), np.sin(x) + size, rtol=1e-6)
            wait("never lowered")
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == [("jit(<lambda>)", False)] * 3


def test_an_error_of_the_compiler_is_raised_where_the_program_is_needed():
    class Failing:
        def compile(self):
            raise ValueError("cannot be compiled")

    programs = [("name", Failing())]
    with compiled_ahead(programs) as wait, pytest.raises(ValueError, match="cannot be compiled"):  # pyright: ignore[reportArgumentType]
        wait("name")


def test_several_processes_compile_nothing_ahead(monkeypatch):
    monkeypatch.setattr(processes, "_group", processes.ProcessGroup(2))

    def programs():
        raise AssertionError("lowered")
        yield

    with compiled_ahead(programs()) as wait:
        wait("name")
