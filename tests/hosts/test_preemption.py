"""SIGTERM and SIGKILL: files on disk are complete, and the same command resumes and ends with the same result."""

import json
import shutil
import signal

import pytest

from tests.hosts.conftest import losses, train, wait_for

pytestmark = pytest.mark.slow


def is_finished(output) -> bool:
    return json.loads((output / "run.json").read_text())["finished"]


@pytest.fixture(scope="session")
def preempted_alone(data, start, tmp_path_factory):
    """A run of one process that received SIGTERM. Not to be changed."""
    output = tmp_path_factory.mktemp("alone") / "model"
    started = start(1, train(data, output))
    wait_for(lambda: (output / "metrics.jsonl").exists() and max(losses(output), default=0) >= 7, started)
    started.kill(0, signal.SIGTERM)
    statuses, printed = started.end()
    assert statuses == [[0]]
    assert "run the same command again" in printed
    assert not is_finished(output)
    return output


def test_a_preempted_process_exits_with_status_0_and_resumes_to_the_same_bytes(
    data, start, uninterrupted, preempted_alone, tmp_path
):
    output = shutil.copytree(preempted_alone, tmp_path / "model")
    stopped = max(losses(output))
    assert 7 <= stopped < 25
    _, printed = start(1, train(data, output)).end()
    assert f"resuming after step {stopped} of 25" in printed
    assert is_finished(output)
    assert (output / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
    assert losses(output) == losses(uninterrupted)


def test_a_kill_during_a_save_keeps_the_previous_checkpoint(data, start, uninterrupted, tmp_path):
    output = tmp_path / "model"
    checkpoints = output / "checkpoints"

    def unfinished():
        return [path for path in checkpoints.glob("*tmp*") if path.is_dir()] if checkpoints.exists() else []

    for _ in range(5):  # a save may be complete before the signal arrives
        started = start(1, train(data, output))
        wait_for(lambda: unfinished() and any(path.name.isdecimal() for path in checkpoints.iterdir()), started)
        started.kill(0, signal.SIGKILL)
        started.process.communicate()
        if unfinished():
            break
    assert unfinished()
    complete = max(int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal())
    statuses, printed = start(1, train(data, output)).end()
    assert statuses == [[0]]
    assert f"resuming after step {complete} of 25" in printed
    assert (output / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()


@pytest.fixture(scope="session")
def preempted(data, start, tmp_path_factory):
    """A run of two processes, of which only the second received SIGTERM."""
    output = tmp_path_factory.mktemp("preempted") / "model"
    started = start(2, train(data, output))
    wait_for(
        (output / "run.json").exists, started
    )  # jax checks for signals once a second, so the signal must come early
    started.kill(1, signal.SIGTERM)
    statuses, printed = started.end()
    assert statuses == [[0], [0]], printed
    assert printed.count("run the same command again") == 2
    assert not is_finished(output)
    return output


def test_two_preempted_processes_resume_to_the_same_bytes_and_continue_a_run_of_one_process(
    data, start, uninterrupted, preempted, preempted_alone, tmp_path
):
    output, complete, grown = (tmp_path / name for name in ("model", "whole", "grown"))
    stopped = [max(losses(shutil.copytree(*paths))) for paths in ((preempted, output), (preempted_alone, grown))]
    statuses, printed = start(2, *(train(data, path) for path in (output, complete, grown))).end()
    assert statuses == [[0, 0, 0]] * 2, printed
    assert all(f"resuming after step {step} of 25" in printed for step in stopped)
    assert (output / "model.safetensors").read_bytes() == (complete / "model.safetensors").read_bytes()
    assert losses(output) == losses(complete)
    assert_finished_alike(grown, uninterrupted)


def test_a_process_on_another_mesh_continues_a_run_of_two(data, start, uninterrupted, preempted, tmp_path):
    output = shutil.copytree(preempted, tmp_path / "model")
    stopped = max(losses(output))
    mesh = ("--model-parallel", 2, "--sharding", "fsdp+tensor")
    statuses, printed = start(1, train(data, output, *mesh)).end()
    assert statuses == [[0]], printed
    assert f"resuming after step {stopped} of 25" in printed
    assert_finished_alike(output, uninterrupted)


def assert_finished_alike(output, expected):
    assert is_finished(output)
    # With other batches losses would differ by far more than rounding, from the first update.
    assert losses(output) == pytest.approx(losses(expected), rel=1e-3)


def test_preempted_feedback_resumes_to_the_same_bytes(data, start, uninterrupted, tmp_path):
    def words(output):
        files = ("--merged", data / "train.json", "--model", uninterrupted, "--output", output)
        return ("feedback items", "--task", "LaMP-2", *files, "--batch-size", 4, "--num-beams", 8)

    started = start(2, words(tmp_path / "two"))
    file = tmp_path / "two" / "items-0-of-1.jsonl"
    wait_for(
        lambda: file.exists() and file.stat().st_size, started
    )  # jax checks for signals once a second, so the signal must come early
    started.kill(1, signal.SIGTERM)
    statuses, printed = started.end()
    assert statuses == [[0], [0]]
    assert printed.count("run the same command again") == 2
    assert 0 < len(file.read_bytes().splitlines()) < 160
    assert not is_finished(tmp_path / "two")
    statuses, printed = start(1, words(tmp_path / "two"), words(tmp_path / "one")).end()
    assert statuses == [[0, 0]], printed
    assert file.read_bytes() == (tmp_path / "one" / file.name).read_bytes()


def test_processes_end_together_when_training_diverges_and_keep_good_checkpoints(data, start, tmp_path):
    output = tmp_path / "model"
    diverging = ("--learning-rate", "1e30", "--warmup-ratio", 0.5, "--evaluate-every", 0.2, "--log-every", "1e9")
    for _ in range(2):  # the second run reads the note of the first
        statuses, printed = start(2, train(data, output, *diverging)).end()
        assert statuses == [[1], [1]]
        assert "has diverged at step 2: norm of the parameters is inf; the checkpoint of step 1 is kept" in printed
        assert [path.name for path in (output / "checkpoints").iterdir() if path.name.isdecimal()] == ["1"]
