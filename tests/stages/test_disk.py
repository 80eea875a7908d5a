"""Full disks: the error names the file, and no incomplete output remains.

The same command resumes once there is room. The limit of a file's size (RLIMIT_FSIZE) simulates the full disk.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lamp_jax import cli

pytestmark = pytest.mark.slow

LIMITED = """
import resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from lamp_jax import cli
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def limited() -> Callable[..., str]:
    """The error of a command that must fail because files are limited to this number of bytes."""

    def limited(limit: int, *words) -> str:
        command = [sys.executable, "-c", LIMITED, str(limit), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr.strip().splitlines()[-1]

    return limited


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    size = ("--questions", "40", "--dev-questions", "8", "--profile-size", "6")
    assert cli.main(["synth", "--task", "LaMP-3", *size, "--output", str(folder / "s")]) == 0
    for part in ("train", "dev"):
        files = [f"--{kind}={folder}/s/{part}_{kind}.json" for kind in ("questions", "outputs")]
        assert cli.main(["merge", *files, "--output", str(folder / f"{part}.json")]) == 0
    return folder


def test_files_without_room_are_named_and_completed_by_the_same_command(data, limited, tmp_path):
    commands = {
        "m.json": ("merge", "--questions", data / "s/train_questions.json", "--output", tmp_path / "m.json"),
        "r.json": ("rank", "--task", "LaMP-3", "--questions", data / "train.json", "--output", tmp_path / "r.json"),
    }
    for name, words in commands.items():
        error = limited(1000, *words)
        assert f"{tmp_path}/{name}" in error
        assert "File too large" in error
        assert list(tmp_path.glob(f"*{name}*")) == []
        assert cli.main([str(word) for word in words]) == 0


def test_a_forced_run_on_a_full_disk_keeps_the_old_output(data, limited, tmp_path):
    words = ("merge", "--questions", data / "s/train_questions.json", "--output", tmp_path / "m.json")
    assert cli.main([str(word) for word in words]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limited(1000, *words, "--outputs", data / "s/train_outputs.json", "--force")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("limit", "named"), [(2_000_000, "checkpoints: a checkpoint"), (100_000, "model.safetensors: cannot be written")]
)
def test_a_training_on_a_full_disk_names_the_file_and_resumes(data, limited, tmp_path, limit, named):
    size = ("--d-model", 64, "--d-ff", 128, "--vocab-size", 600, "--max-length", 64, "--num-retrieved", 1)
    files = ("--train", data / "train.json", "--validation", data / "dev.json", "--output", tmp_path / "m")
    words = ("train", "--task", "LaMP-3", *files, "--model", "scratch", *size)
    words += ("--decode", "labels", "--epochs", 1, "--batch-size", 8)
    assert named in limited(limit, *words)
    assert cli.main([str(word) for word in words]) == 0
    assert {path.name for path in (tmp_path / "m").iterdir()} >= {"model.safetensors", "config.json", "run.json"}
    assert not [path for path in (tmp_path / "m").iterdir() if path.name.startswith(".")]
