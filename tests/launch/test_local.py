"""`launch/local.sh`: several processes of a command, which end together."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

LOCAL = str(Path(__file__).parents[2] / "launch" / "local.sh")


def run_local(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([LOCAL, *words], capture_output=True, text=True, timeout=60)


def test_every_process_has_its_number_and_prefixes_its_output():
    found = run_local("3", "bash", "-c", "echo $JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS")
    lines = sorted(found.stdout.splitlines())
    assert [line.partition(" at 127.0.0.1:")[0] for line in lines] == ["0: 0 of 3", "1: 1 of 3", "2: 2 of 3"]
    assert len({line.rpartition(":")[2] for line in lines}) == 1
    assert found.returncode == 0


def test_a_dry_run_starts_nothing(tmp_path):
    found = run_local("--dry-run", "2", "touch", str(tmp_path / "made"))
    assert [line.split()[-3:] for line in found.stdout.splitlines()] == [
        [f"JAX_PROCESS_ID={index}", "touch", str(tmp_path / "made")] for index in (0, 1)
    ]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("words", "status"), [(("--help",), 0), ((), 2), (("0", "true"), 2), (("2",), 2)])
def test_usage_is_printed(words, status):
    found = run_local(*words)
    assert found.returncode == status
    assert "usage: launch/local.sh" in found.stdout + found.stderr


def test_when_a_process_fails_the_others_are_ended():
    begun = time.monotonic()
    assert run_local("2", "bash", "-c", "[[ $JAX_PROCESS_ID == 1 ]] && exit 3; exec sleep 50").returncode == 3
    assert time.monotonic() - begun < 40


def test_sigterm_is_sent_to_all_processes():
    program = "trap 'echo told; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    process = subprocess.Popen([LOCAL, "2", "bash", "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert sorted(process.stdout.readline() for _ in range(2)) == ["0: ready\n", "1: ready\n"]
    process.send_signal(signal.SIGTERM)
    assert sorted(process.communicate(timeout=30)[0].splitlines()) == ["0: told", "1: told"]
    assert process.returncode == 0
