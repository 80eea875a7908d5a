"""SIGTERM and SIGKILL: files on disk are complete, and the same command resumes and ends with the same result."""

import json
import shutil
import signal

import pytest

from tests.hosts.conftest import losses, train, wait_for

pytestmark = pytest.mark.slow


def is_finished(output) -> bool:
    return json.loads((output / "run.json").read_text())["finished"]


def test_a_preempted_process_exits_with_status_0_and_resumes_to_the_same_bytes(data, start, uninterrupted, tmp_path):
    output = tmp_path / "model"
    started = start(1, train(data, output))
    wait_for(lambda: (output / "metrics.jsonl").exists() and max(losses(output), default=0) >= 7, started)
    started.kill(0, signal.SIGTERM)
    statuses, printed = started.end()
    assert statuses == [[0]]
    assert "run the same command again" in printed
    assert not is_finished(output)
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


def test_two_preempted_processes_resume_to_the_same_bytes(data, start, preempted, tmp_path):
    output, complete = tmp_path / "model", tmp_path / "whole"
    shutil.copytree(preempted, output)
    stopped = max(losses(output))
    statuses, printed = start(2, train(data, output), train(data, complete)).end()
    assert statuses == [[0, 0]] * 2, printed
    assert f"resuming after step {stopped} of 25" in printed
    assert (output / "model.safetensors").read_bytes() == (complete / "model.safetensors").read_bytes()
    assert losses(output) == losses(complete)


@pytest.mark.parametrize(("number", "mesh"), [(4, ()), (1, ("--model-parallel", 2, "--sharding", "fsdp+tensor"))])
def test_a_preempted_run_resumes_with_another_number_of_processes(
    data, start, uninterrupted, preempted, tmp_path, number, mesh
):
    output = tmp_path / "model"
    shutil.copytree(preempted, output)
    stopped = max(losses(output))
    statuses, printed = start(number, train(data, output, *mesh)).end()
    assert statuses == [[0]] * number, printed
    assert f"resuming after step {stopped} of 25" in printed
    assert is_finished(output)
    # With other batches losses would differ by far more than rounding, from the first update.
    assert losses(output) == pytest.approx(losses(uninterrupted), rel=1e-3)


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
