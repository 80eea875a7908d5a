"""Process groups: their environment variables, and agreement between processes."""

import signal
import subprocess
import sys
import threading

import pytest

from lamp_jax.errors import LampError
from lamp_jax.runs import processes
from lamp_jax.runs.processes import GroupDeclaration, assert_equal, on_first, on_sigterm, read_declaration

WHOLE = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


def test_three_variables_or_lamp_hosts_declare_several_processes():
    assert read_declaration(WHOLE) == GroupDeclaration("10.0.0.1:1234", 4, 3)
    assert read_declaration({"LAMP_HOSTS": "all"}) == GroupDeclaration()
    assert read_declaration({}) is None
    assert read_declaration({**WHOLE, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"JAX_PROCESS_ID": ""}, "several processes need JAX_PROCESS_ID too"),
        (
            {"JAX_NUM_PROCESSES": "", "JAX_COORDINATOR_ADDRESS": ""},
            "need JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES",
        ),
        ({"JAX_PROCESS_ID": "4"}, "JAX_NUM_PROCESSES=4, JAX_PROCESS_ID=4: processes are numbered from 0"),
        ({"JAX_PROCESS_ID": "-1"}, "integers from 0 on"),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "JAX_COORDINATOR_ADDRESS=10.0.0.1: give HOST:PORT"),
        ({"LAMP_HOSTS": "2"}, "LAMP_HOSTS=2: set LAMP_HOSTS=all"),
    ],
)
def test_an_incomplete_declaration_is_an_error_that_names_the_variables(said, message):
    with pytest.raises(LampError, match=message):
        read_declaration({**WHOLE, **said})


def test_a_single_process_runs_on_first_and_assert_equal_directly():
    value = object()  # no value is serialized, so it need not be JSON
    assert on_first(lambda: value) is value
    assert assert_equal("anything", lambda: "x") == "x"


PROGRAM = """
import sys
from lamp_jax.runs import processes
from lamp_jax.errors import LampError
index, asked = int(sys.argv[1]), []
def put(name, value):
    print(name, value, flush=True)
def get(name):
    found = [line.split(" ", 1) for line in iter(sys.stdin.readline, "")]
    return dict(found)[name].strip()
processes.join_group(processes.ProcessGroup(2, index, put, get))
def ask():
    asked.append(1)
    if sys.argv[2] == "error":
        raise LampError("no such place")
    return {"state": "new", "nested": processes.on_first(lambda: 7)}
try:
    said = processes.on_first(ask)
except LampError as error:
    said = error
print(said, len(asked), file=sys.stderr)
"""


@pytest.mark.parametrize(("case", "said"), [("value", "{'state': 'new', 'nested': 7}"), ("error", "no such place")])
def test_only_the_first_process_runs_and_all_get_its_result_or_error(case, said):
    def run(index, heard):
        words = [sys.executable, "-c", PROGRAM, str(index), case]
        return subprocess.run(words, input=heard, capture_output=True, text=True, check=True)

    first = run(0, "")
    assert first.stderr.strip() == f"{said} 1"
    assert run(1, first.stdout).stderr.strip() == f"{said} 0"


def test_sigterm_is_handled_only_within_the_context():
    before, asked = signal.getsignal(signal.SIGTERM), threading.Event()
    with on_sigterm(asked.set):
        signal.raise_signal(signal.SIGTERM)
        assert asked.is_set()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_single_process_is_the_first():
    assert processes.is_first()
    assert processes.process_count() == 1
