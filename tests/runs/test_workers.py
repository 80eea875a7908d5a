"""Chunked parallel map over a long file: every record once, in order, for any number of workers."""

import json
import multiprocessing
import os

import pytest

from lamp_jax.config import Work
from lamp_jax.data import chunks
from lamp_jax.data.chunks import Chunk, cut_chunks, map_chunks
from lamp_jax.errors import LampError
from lamp_jax.runs import workers
from lamp_jax.runs.json_records import RecordScanner
from lamp_jax.runs.workers import count_processes, map_in_processes


@pytest.fixture
def long_file(tmp_path, monkeypatch):
    """500 records in chunks of a few records."""
    monkeypatch.setattr(chunks, "_CHUNK_BYTES", 200)
    path = tmp_path / "long.json"
    path.write_text(json.dumps([{"id": str(number), "text": "é" * (number % 50)} for number in range(500)]))
    return path


def records_of(chunk: Chunk) -> list[tuple]:
    return list(chunk.read())


def test_chunks_have_every_record_once_with_its_number_and_position(long_file):
    chunks = list(cut_chunks(long_file))
    assert len(chunks) > 20
    assert [record for chunk in chunks for record in chunk.read()] == list(RecordScanner(long_file))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_are_in_order_for_any_number_of_workers(long_file, processes):
    chunks = list(cut_chunks(long_file))
    results = list(map_in_processes(records_of, iter(chunks), processes=processes))
    assert results == [records_of(chunk) for chunk in chunks]


def test_few_bytes_start_no_process(long_file, monkeypatch):
    monkeypatch.setattr(workers, "ProcessPoolExecutor", None)
    assert sum(map(len, map_chunks(records_of, long_file, Work()))) == 500
    assert count_processes(Work(workers=7), 2**40) == 7
    assert count_processes(Work(), 0) == 1


def die_in_a_worker(piece: int) -> int:
    if multiprocessing.parent_process() is not None:
        os._exit(1)
    return piece


def test_a_worker_that_dies_is_an_error():
    with pytest.raises(LampError, match="worker process died"):
        list(map_in_processes(die_in_a_worker, range(20), processes=2))


def refuse_the_third(piece: int) -> int:
    if piece == 3:
        raise LampError("file.json, question '3': no good")
    return piece


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_in_a_worker_is_raised_unchanged(processes):
    with pytest.raises(LampError, match="question '3': no good"):
        list(map_in_processes(refuse_the_third, range(20), processes=processes))


def test_an_empty_list_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "empty.json").write_text("[]")
    for name, words in (("empty.json", "contains no records"), ("none.json", "no such file")):
        with pytest.raises(LampError, match=f"{name}: {words}"):
            list(map_chunks(records_of, tmp_path / name, Work()))
