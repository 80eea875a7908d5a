"""Command line `lamp COMMAND --options`: parsing, and the call of the command's stage."""

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import tyro

from lamp_jax import config
from lamp_jax.errors import LampError, Preempted
from lamp_jax.options import STAGES
from lamp_jax.options.pages import parse_options, read_experiment
from lamp_jax.runs import processes, remote
from lamp_jax.runs.urls import naming_urls, with_urls

JOINT = {"demo", *(stage for stage, options in STAGES.items() if "devices" in options.__dataclass_fields__)}
"""Commands that a process group runs together and that resume after SIGTERM, those that compute on devices; the others
run on the first process."""
_DESCRIPTION = """Personalize language models from a user's own history.

--reference, anywhere on the line, sets every compatibility option to the papers' public code.
`lamp train CONFIG.py` takes its options from a config page (its `experiment`); options after it override them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, or 1 after an error that the user can fix."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        stage, options = parse(words)
        _run(stage, partial(_work, importlib.import_module(module_of(stage)).run, options))
    except LampError as error:
        print(f"lamp: {with_urls(str(error))}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of stdout has exited, as in `lamp rank --help | head`
        # Otherwise the interpreter's final flush fails too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:  # full disk, permission, missing file, network: the cause is in the message
        print(f"lamp: {with_urls(str(error))}", file=sys.stderr)
        return 1
    except Preempted:
        print("lamp: stopped by SIGTERM; run the same command again to resume", file=sys.stderr)
        return 0
    except KeyboardInterrupt:
        print("lamp: stopped; run the same command again to resume if it can", file=sys.stderr)
        return 130
    return 0


def _run(stage: str, work: Callable[[], None]) -> None:
    """Runs a command in the process group that the environment declares."""
    declared = processes.read_declaration(os.environ)
    if declared:
        from lamp_jax import distributed as hosts  # imported here because it imports jax

        hosts.start(declared)
    if stage in JOINT and processes.process_count() > 1:
        _run_jointly(work)
    elif stage in JOINT:
        with processes.on_sigterm(_stop):
            work()
    else:
        if declared:
            # jax installs its own handler, which these stages do not poll.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if not processes.is_first():
            print(f"lamp: {stage} runs on the first process only; waiting for it", file=sys.stderr)
        processes.on_first(work)


def _work(run: Callable[[Any], None], options: Any) -> None:
    """Runs the stage on local copies of the files that its options name by URL."""
    with naming_urls():
        try:
            run(remote.fetch_urls(options))
        except BaseException:
            try:
                remote.send_and_forget()
            except LampError as error:  # in addition to the error that is raised
                print(f"lamp: {error}", file=sys.stderr)
            raise
        remote.send_and_forget()


def _run_jointly(work: Callable[[], None]) -> None:
    """Runs the work on every process; only the first prints, and all end together."""
    preempted = False
    with contextlib.ExitStack() as stack:
        if not processes.is_first():
            devnull = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(devnull))
            stack.enter_context(contextlib.redirect_stderr(devnull))
        try:
            work()
        except Preempted:  # raised by all processes after the same step
            preempted = True
        processes.wait()  # the first process may still be writing
    if preempted:
        raise Preempted


def _stop() -> None:
    raise Preempted


def module_of(stage: str) -> str:
    """Name of the module whose `run` is the stage."""
    return f"lamp_jax.stages.{stage.replace(' ', '_').replace('-', '_')}"


def parse(words: list[str]) -> tuple[str, Any]:
    """Name and options of a command. Exits with a usage message for invalid words."""
    compatibility = config.REFERENCE if "--reference" in words else config.CORRECT
    words = [word for word in words if word != "--reference"]
    if " ".join(words[:2]) in STAGES:  # a command of two words is one subcommand
        words[:2] = [" ".join(words[:2])]
    experiments: dict[str, Any] = {}
    further: list[str] = []
    if words[:1] == ["compile"]:  # reads the page itself; options of its experiment follow after `--`
        mark = words.index("--") if "--" in words else len(words)
        words, further = words[:mark], words[mark + 1 :]
    elif len(words) > 1 and words[1].endswith(".py"):
        experiments[words[0]] = load_experiment(words[0], words.pop(1))
    if not (words and words[0] in STAGES):
        _explain(words)
    stage, options = words[0], STAGES[words[0]]  # only its own parser is made
    default = experiments.get(stage, _defaults(options, compatibility))
    chosen = parse_options(options, words[1:], prog=f"lamp {stage}", default=default)
    return stage, dataclasses.replace(chosen, options=tuple(further)) if further else chosen


def _explain(words: list[str]) -> NoReturn:
    """Exits with the list of all commands, or with a usage message for words that begin with none."""
    # Not by tyro, which takes longer to read the source of a class than to be imported.
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("lamp", description=_DESCRIPTION, formatter_class=style, allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, options in STAGES.items():
        summary = inspect.cleandoc(options.__doc__ or "").partition("\n\n")[0]
        commands.add_parser(name, help=" ".join(summary.replace("%", "%%").split()))
    parser.parse_args(words)
    raise AssertionError(f"{words} begin with a command")


def load_experiment(stage: str, path: str) -> Any:
    """Experiment of a config page. LampError if it is not the options of the command."""
    if stage not in STAGES:
        raise LampError(f"{path}: a config page needs a command: lamp COMMAND {path}")
    return read_experiment(path, STAGES[stage])


def _defaults(options: type, compatibility: config.Compatibility) -> Any:
    """Default options, with the required ones marked as missing."""
    required = {
        field.name: tyro.MISSING for field in dataclasses.fields(options) if field.default is dataclasses.MISSING
    }
    switches = {"compatibility": compatibility} if "compatibility" in options.__dataclass_fields__ else {}
    return options(**required, **switches)


if __name__ == "__main__":
    sys.exit(main())
