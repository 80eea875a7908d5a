"""`lamp STAGE --options`: which stages there are, and how a command line becomes a call of one."""

import contextlib
import dataclasses
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Union

import tyro

from lamp_jax import config
from lamp_jax.errors import LampError, Preempted
from lamp_jax.options import STAGES
from lamp_jax.options.pages import CLI_STYLE, read_experiment
from lamp_jax.runs import processes, remote
from lamp_jax.runs.urls import naming_urls, with_urls

JOINT = {"demo", "rank", "train", "train-adapters", "generate", "train-retriever", "train-selector", "select"}
JOINT |= {"feedback items", "feedback retrievers"}
"""Stages that several processes work on together, and that go on where SIGTERM stopped them. Others are one's work."""
_DESCRIPTION = """Personalize language models from a user's own history.

--reference, anywhere on the line, sets every compatibility option to the papers' public code.
`lamp train CONFIG.py` starts from the experiment in a Python page (its `experiment`); options after it override."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one stage; returns 0, or 1 after an error that the user can mend."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        stage, options = parse(words)
        _run(stage, partial(_work, importlib.import_module(module_of(stage)).run, options))
    except LampError as error:
        print(f"lamp: {with_urls(str(error))}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # nobody reads any more what is printed, as in `lamp rank --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush fails too
        return 128 + signal.SIGPIPE
    except OSError as error:  # no room, no permission, no such place, no network: it names which
        print(f"lamp: {with_urls(str(error))}", file=sys.stderr)
        return 1
    except Preempted:
        print("lamp: stopped by SIGTERM; the same command goes on", file=sys.stderr)
        return 0
    except KeyboardInterrupt:
        print("lamp: stopped; the same command goes on where it can", file=sys.stderr)
        return 130
    return 0


def _run(stage: str, work: Callable[[], None]) -> None:
    """Does the work, with the other processes that the environment declares."""
    declared = processes.read_declaration(os.environ)
    if declared:
        from lamp_jax import distributed as hosts  # here, not above: it wakes jax

        hosts.start(declared)
    if stage in JOINT and processes.how_many() > 1:
        _run_jointly(work)
    elif stage in JOINT:
        with processes.on_sigterm(_stop):
            work()
    else:
        if declared:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # jax has its own handler, for those who ask it
        if not processes.is_first():
            print(f"lamp: {stage} is one process's work; waiting for the first", file=sys.stderr)
        processes.on_first(work)


def _work(run: Callable[[Any], None], options: Any) -> None:
    """The stage, on local copies of what its options name by URL."""
    with naming_urls():
        try:
            run(remote.bring(options))
        except BaseException:
            try:
                remote.leave()
            except LampError as error:  # beside the one that is raised
                print(f"lamp: {error}", file=sys.stderr)
            raise
        remote.leave()


def _run_jointly(work: Callable[[], None]) -> None:
    """Every process does it, one of them says so; they end together."""
    preempted = False
    with contextlib.ExitStack() as stack:
        if not processes.is_first():
            nothing = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nothing))
            stack.enter_context(contextlib.redirect_stderr(nothing))
        try:
            work()
        except Preempted:  # by all, at the same place
            preempted = True
        processes.wait()  # the first may still have written
    if preempted:
        raise Preempted


def _stop() -> None:
    raise Preempted


def module_of(stage: str) -> str:
    """The module whose `run` is the stage."""
    return f"lamp_jax.stages.{stage.replace(' ', '_').replace('-', '_')}"


def parse(words: list[str]) -> tuple[str, Any]:
    """The stage's name and its options. Exits with a message, as command lines do, where they do not fit."""
    compatibility = config.REFERENCE if "--reference" in words else config.CORRECT
    words = [word for word in words if word != "--reference"]
    if " ".join(words[:2]) in STAGES:  # a stage of two words is one choice
        words[:2] = [" ".join(words[:2])]
    experiments: dict[str, Any] = {}
    further: list[str] = []
    if words[:1] == ["compile"]:  # takes the page as it is, and behind `--` options of its experiment
        mark = words.index("--") if "--" in words else len(words)
        words, further = words[:mark], words[mark + 1 :]
    elif len(words) > 1 and words[1].endswith(".py"):
        experiments[words[0]] = load_experiment(words[0], words.pop(1))
    defaults = {name: _defaults(options, compatibility) for name, options in STAGES.items()} | experiments
    subcommands = [
        Annotated[options, tyro.conf.subcommand(name, default=defaults[name])] for name, options in STAGES.items()
    ]
    choice: Any = Union[tuple(subcommands)]  # noqa: UP007 (built from a table)
    chosen = tyro.cli(
        choice,
        prog="lamp",
        description=_DESCRIPTION,
        args=words,
        config=CLI_STYLE,
    )
    if further:
        chosen = dataclasses.replace(chosen, options=tuple(further))
    return next(name for name, options in STAGES.items() if isinstance(chosen, options)), chosen


def load_experiment(stage: str, path: str) -> Any:
    """The `experiment` of a config page; it must hold the options of the stage."""
    if stage not in STAGES:
        raise LampError(f"{path}: a config page goes with a stage: lamp STAGE {path}")
    return read_experiment(path, STAGES[stage])


def _defaults(options: type, compatibility: config.Compatibility) -> Any:
    """An instance whose required options are still to be given."""
    required = {
        field.name: tyro.MISSING for field in dataclasses.fields(options) if field.default is dataclasses.MISSING
    }
    switches = {"compatibility": compatibility} if "compatibility" in options.__dataclass_fields__ else {}
    return options(**required, **switches)


if __name__ == "__main__":
    sys.exit(main())
