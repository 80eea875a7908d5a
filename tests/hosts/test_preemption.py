"""SIGTERM and SIGKILL: files on disk are complete, and the same command resumes and ends with the same result."""

import json
import shutil
import signal

import pytest

from tests.hosts.conftest import losses, train, wait_for

pytestmark = pytest.mark.slow


def is_finished(output) -> bool:
    return json.loads((output / "run.json").read_text())["finished"]


def test_one_process_that_is_preempted_ends_well_and_goes_on_to_the_same_bytes(data, start, undisturbed, tmp_path):
    output = tmp_path / "model"
    started = start(1, train(data, output))
    wait_for(lambda: (output / "metrics.jsonl").exists() and max(losses(output), default=0) >= 7, started)
    started.kill(0, signal.SIGTERM)
    statuses, said = started.end()
    assert statuses == [[0]]
    assert "run the same command again" in said
    assert not is_finished(output)
    stopped = max(losses(output))
    assert 7 <= stopped < 25
    _, said = start(1, train(data, output)).end()
    assert f"resuming after step {stopped} of 25" in said
    assert is_finished(output)
    assert (output / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    assert losses(output) == losses(undisturbed)


def test_a_kill_within_a_save_leaves_the_checkpoint_before_it(data, start, undisturbed, tmp_path):
    output = tmp_path / "model"
    checkpoints = output / "checkpoints"

    def unfinished():
        return [path for path in checkpoints.glob("*tmp*") if path.is_dir()] if checkpoints.exists() else []

    for _ in range(5):  # a save may be whole before the signal comes
        started = start(1, train(data, output))
        wait_for(lambda: unfinished() and any(path.name.isdecimal() for path in checkpoints.iterdir()), started)
        started.kill(0, signal.SIGKILL)
        started.process.communicate()
        if unfinished():
            break
    assert unfinished()
    whole = max(int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal())
    statuses, said = start(1, train(data, output)).end()
    assert statuses == [[0]]
    assert f"resuming after step {whole} of 25" in said
    assert (output / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()


@pytest.fixture(scope="session")
def preempted(data, start, tmp_path_factory):
    """A run of two processes, of which the second one alone had a SIGTERM."""
    output = tmp_path_factory.mktemp("preempted") / "model"
    started = start(2, train(data, output))
    wait_for((output / "run.json").exists, started)  # jax looks for signals once a second, so not too late
    started.kill(1, signal.SIGTERM)
    statuses, said = started.end()
    assert statuses == [[0], [0]], said
    assert said.count("run the same command again") == 2
    assert not is_finished(output)
    return output


def test_two_processes_that_were_preempted_go_on_to_the_same_bytes(data, start, preempted, tmp_path):
    output, whole = tmp_path / "model", tmp_path / "whole"
    shutil.copytree(preempted, output)
    stopped = max(losses(output))
    statuses, said = start(2, train(data, output), train(data, whole)).end()
    assert statuses == [[0, 0]] * 2, said
    assert f"resuming after step {stopped} of 25" in said
    assert (output / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert losses(output) == losses(whole)


@pytest.mark.parametrize(("number", "mesh"), [(4, ()), (1, ("--model-parallel", 2, "--sharding", "fsdp+tensor"))])
def test_a_run_that_was_preempted_goes_on_with_another_number_of_processes(
    data, start, undisturbed, preempted, tmp_path, number, mesh
):
    output = tmp_path / "model"
    shutil.copytree(preempted, output)
    stopped = max(losses(output))
    statuses, said = start(number, train(data, output, *mesh)).end()
    assert statuses == [[0]] * number, said
    assert f"resuming after step {stopped} of 25" in said
    assert is_finished(output)
    # Other batches would differ from the first update on by far more than rounding does.
    assert losses(output) == pytest.approx(losses(undisturbed), rel=1e-3)


def test_feedback_that_was_preempted_goes_on_to_the_same_bytes(data, start, undisturbed, tmp_path):
    def words(output):
        files = ("--merged", data / "train.json", "--model", undisturbed, "--output", output)
        return ("feedback items", "--task", "LaMP-2", *files, "--batch-size", 4, "--num-beams", 8)

    started = start(2, words(tmp_path / "two"))
    file = tmp_path / "two" / "items-0-of-1.jsonl"
    wait_for(
        lambda: file.exists() and file.stat().st_size, started
    )  # jax looks for signals once a second: not too late
    started.kill(1, signal.SIGTERM)
    statuses, said = started.end()
    assert statuses == [[0], [0]]
    assert said.count("run the same command again") == 2
    assert 0 < len(file.read_bytes().splitlines()) < 160
    assert not is_finished(tmp_path / "two")
    statuses, said = start(1, words(tmp_path / "two"), words(tmp_path / "one")).end()
    assert statuses == [[0, 0]], said
    assert file.read_bytes() == (tmp_path / "one" / file.name).read_bytes()


def test_processes_whose_training_diverges_end_together_and_keep_what_was_good(data, start, tmp_path):
    output = tmp_path / "model"
    diverging = ("--learning-rate", "1e30", "--warmup-ratio", 0.5, "--evaluate-every", 0.2, "--log-every", "1e9")
    for _ in range(2):  # the second finds the note of the first
        statuses, said = start(2, train(data, output, *diverging)).end()
        assert statuses == [[1], [1]]
        assert "has diverged at step 2: norm of the parameters is inf; the checkpoint of step 1 is kept" in said
        assert [path.name for path in (output / "checkpoints").iterdir() if path.name.isdecimal()] == ["1"]
