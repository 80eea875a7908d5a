"""Beam pipelines: the same results in the same order, by several workers, and errors with their causes."""

import os

import pytest

from lamp_jax.config import Work
from lamp_jax.errors import LampError
from lamp_jax.runs.workers import parallel_map

pytest.importorskip("apache_beam")
# Warnings of Beam's own code.
pytestmark = pytest.mark.filterwarnings(
    "default::DeprecationWarning",
    "default::FutureWarning",
    "default::ResourceWarning",
    "default::pytest.PytestUnraisableExceptionWarning",
)
SEVERAL = Work(
    beam_runner="DirectRunner", beam_options=("direct_num_workers=2", "direct_running_mode=multi_processing")
)


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def refuse_the_third(number: int) -> int:
    if number == 3:
        raise LampError("file.json, question '3': no good")
    return number


def test_results_come_in_order_from_other_processes():
    results = list(parallel_map(square, range(40), SEVERAL, size=2**40))
    assert [result for result, _ in results] == [number * number for number in range(40)]
    assert os.getpid() not in {process for _, process in results}


def test_an_error_in_the_pipeline_is_raised_unchanged():
    with pytest.raises(LampError, match="question '3': no good"):
        list(parallel_map(refuse_the_third, range(9), Work(beam_runner="DirectRunner"), size=0))


def test_an_option_that_beam_does_not_know_is_named():
    work = Work(beam_runner="DirectRunner", beam_options=("direct_nun_workers=2",))
    with pytest.raises(LampError, match="unknown options of Beam: direct_nun_workers=2"):
        list(parallel_map(square, range(3), work, size=0))


def test_intermediate_results_are_removed(tmp_path):
    work = Work(beam_runner="DirectRunner", beam_staging=str(tmp_path))
    assert len(list(parallel_map(square, range(3), work, size=0))) == 3
    assert not list(tmp_path.iterdir())
