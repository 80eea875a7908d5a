"""Batch rows of each process: together they are the batch of a single process."""

import json
import re

import jax
import numpy as np
import pytest

from lamp_jax import cli
from lamp_jax.inputs.batches import Example, TrainingBatches, prediction_batches
from lamp_jax.inputs.candidate_batches import CandidateBatches, Candidates
from lamp_jax.sharding import make_mesh, own_rows
from tests.hosts.conftest import train

SIZE = 8
PARTS = [
    [np.arange(8)],
    [np.arange(4), np.arange(4, 8)],
    [np.array([0, 1, 4, 5]), np.array([2, 3, 6, 7])],  # devices that are not in the processes' order
    [np.arange(start, start + 2) for start in (0, 2, 4, 6)],
    [np.arange(8), np.arange(8)],  # a model axis over two processes: both have the same rows
]


def examples(count):
    return [Example(str(n), [n + 1] * (n % 13 + 1), [n + 1, 1]) for n in range(count)]


def training(own):
    return TrainingBatches(examples(45), batch_size=SIZE, max_length=16, buckets=(4, 8, 16), seed=3, own=own)


def choosing(own):
    texts = [[np.full(n % 5 + 1, n + 1, np.int32)] * (n % 3 + 2) for n in range(45)]
    scored = [
        Candidates(str(n), np.ones(2, np.int32), text, np.arange(len(text)) / 9.0) for n, text in enumerate(texts)
    ]
    return CandidateBatches(scored, batch_size=SIZE, max_length=16, pad=-1, seed=3, own=own)


def assert_same(parts, batches, complete):
    """The rows of every process are at their places in the global batch."""
    for own, batch in zip(parts, batches, strict=True):
        for rows, all_rows in zip(batch, complete, strict=True):
            np.testing.assert_array_equal(rows, all_rows[own])


@pytest.mark.parametrize("parts", PARTS, ids=len)
@pytest.mark.parametrize("make", [training, choosing])
def test_the_global_batch_does_not_depend_on_the_processes(make, parts):
    complete, shared = make(np.arange), [make(lambda size, own=own: own) for own in parts]
    for step in range(2 * len(complete)):
        assert_same(parts, [batches[step] for batches in shared], complete[step])


@pytest.mark.parametrize("parts", PARTS, ids=len)
def test_prediction_batches_do_not_depend_on_the_processes(parts):
    rows = {4: SIZE, 16: SIZE}
    complete = list(prediction_batches(examples(45), rows=rows))
    shared = [list(prediction_batches(examples(45), rows=rows, own=lambda size, own=own: own)) for own in parts]
    for step, (positions, batch) in enumerate(complete):
        assert all(batches[step][0] == positions for batches in shared)
        assert_same(parts, [batches[step][1] for batches in shared], batch)


def test_one_process_has_all_rows():
    with jax.set_mesh(make_mesh(4, 2)):
        np.testing.assert_array_equal(own_rows(12), np.arange(12))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--batch-size", 12),
            "--accumulation 1 gives microbatches of 12, .* 8 data shards; use --batch-size 8 or 16",
        ),
        (("--batch-size", 24, "--accumulation", 2), "microbatches of 12, .* 8 data shards; use --batch-size 16 or 32"),
        (("--batch-size", 9, "--accumulation", 2), "--batch-size 9 is not a multiple of --accumulation 2"),
    ],
)
def test_a_training_batch_that_does_not_divide_is_refused_before_work(data, tmp_path, capsys, more, message):
    assert cli.main([str(word) for word in train(data, tmp_path / "model", *more)]) == 1
    assert_reported(capsys, message)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("stage", [("generate", "--questions"), ("feedback items", "--merged")], ids=" ".join)
def test_a_batch_of_questions_that_does_not_divide_is_refused_before_work(data, tmp_path, capsys, stage):
    model = cli.__file__.replace("lamp_jax/cli.py", "tests/cases/tiny/t5_ft")
    words = [stage[0], stage[1], data / "dev.json", "--task", "LaMP-2", "--model", model, "--output", tmp_path / "out"]
    assert cli.main([str(word) for word in (*words, "--batch-size", 12)]) == 1
    assert_reported(capsys, "--batch-size 12 does not divide over 8 data shards; use 8 or 16")
    assert not (tmp_path / "out").exists()


def test_sharding_options_do_not_change_the_run_fingerprint(data, tmp_path, capsys):
    words = ["generate", "--task", "LaMP-2", "--questions", data / "dev.json", "--output", tmp_path / "out.json"]
    words += ["--model", cli.__file__.replace("lamp_jax/cli.py", "tests/cases/tiny/t5_ft"), "--decode", "labels"]
    words = [str(word) for word in (*words, "--max-length", 64)]
    assert cli.main(words) == 0
    assert cli.main([*words, "--model-parallel", "2", "--sharding", "fsdp+tensor", "--remat", "full"]) == 0
    assert "already generated" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json.run.json").read_text())["settings"]["devices"]["sharding"] == "data"
    assert cli.main([*words, "--dtype", "bfloat16"]) == 1


def assert_reported(capsys, message):
    assert re.search(message, capsys.readouterr().err)
