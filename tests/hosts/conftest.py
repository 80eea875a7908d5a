"""Commands in one process or several that work together, with four devices in total; small files for them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lamp_jax import cli
from lamp_jax.compiled_programs import VARIABLE

ROOT = Path(__file__).parents[2]
DEVICES = 4

# Several commands in one process, because starting costs more than they do. `{index}` is the process's number.
_PROGRAM = """
import json, os, sys
from pathlib import Path
from lamp_jax import cli
index = os.environ.get("JAX_PROCESS_ID", "0")
Path(sys.argv[1], f"pid-{index}").write_text(str(os.getpid()))
statuses = [cli.main([word.replace("{index}", index) for word in words]) for words in json.loads(sys.argv[2])]
Path(sys.argv[1], f"statuses-{index}").write_text(json.dumps(statuses))
sys.exit(0)
"""


@dataclass
class Started:
    """Running processes, and the directory of their notes."""

    process: subprocess.Popen
    notes: Path
    number: int

    def kill(self, index: int, what: signal.Signals) -> None:
        os.kill(int((self.notes / f"pid-{index}").read_text()), what)

    def end(self) -> tuple[list[list[int]], str]:
        """The commands' statuses, process by process, and what was printed."""
        output = self.process.communicate(timeout=600)[0]
        assert self.process.returncode == 0, output
        return [json.loads((self.notes / f"statuses-{index}").read_text()) for index in range(self.number)], output


@pytest.fixture(scope="session")
def start(tmp_path_factory, compiled) -> Callable[..., Started]:
    """Starts the commands in the given number of processes, which share the devices."""

    def start(number: int, *commands) -> Started:
        notes = tmp_path_factory.mktemp("notes")
        known = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
        flags = " ".join((*known, f"--xla_force_host_platform_device_count={DEVICES // number}"))
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "LAMP_"))}
        environment |= {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        environment[VARIABLE] = compiled
        environment |= {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
        words = [[str(word) for word in command] for command in commands]
        program = [sys.executable, "-c", _PROGRAM, str(notes), json.dumps(words)]
        launcher = [str(ROOT / "launch" / "local.sh"), str(number)] if number > 1 else []
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return Started(subprocess.Popen([*launcher, *program], env=environment, **pipes), notes, number)

    return start


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Merged files of LaMP-2, `train.json` and `dev.json`."""
    folder = tmp_path_factory.mktemp("data")
    size = ("--questions", "40", "--dev-questions", "16", "--profile-size", "4")
    assert cli.main(["synth", "--task", "LaMP-2", *size, "--output", str(folder / "raw")]) == 0
    for split in ("train", "dev"):
        questions, outputs = (str(folder / "raw" / f"{split}_{kind}.json") for kind in ("questions", "outputs"))
        merged = ["--questions", questions, "--outputs", outputs, "--output", str(folder / f"{split}.json")]
        assert cli.main(["merge", *merged]) == 0
    return folder


def train(data: Path, output: Path, *more) -> tuple:
    """25 updates of a tiny T5, an evaluation and a checkpoint every five."""
    size = ("--d-model", 16, "--d-ff", 32, "--num-layers", 1, "--num-decoder-layers", 1, "--num-heads", 4)
    prompts = ("--vocab-size", 400, "--dropout", 0, "--retrievers", "bm25", "--num-retrieved", 2, "--max-length", 128)
    steps = ("--batch-size", 8, "--epochs", 5, "--learning-rate", 2e-2, "--step-size", "relative", "--log-every", 0)
    files = ("--task", "LaMP-2", "--train", data / "train.json", "--validation", data / "dev.json", "--output", output)
    return ("train", *files, "--model", "scratch", *size, *prompts, *steps, "--decode", "labels", *more)


@pytest.fixture(scope="session")
def uninterrupted(data, start, tmp_path_factory) -> Path:
    """Output of an uninterrupted training by one process."""
    output = tmp_path_factory.mktemp("undisturbed") / "model"
    statuses, printed = start(1, train(data, output)).end()
    assert statuses == [[0]], printed
    return output


def losses(output: Path) -> dict[int, float]:
    """Losses in the log by update number; of an update that was made twice, the last loss."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def wait_for(condition: Callable[[], object], started: Started) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert started.process.poll() is None, started.process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.001)
