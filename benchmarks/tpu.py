"""Memory and lower bounds of time on TPUs, by their compiler: `python benchmarks/tpu.py`, which resumes after a break.

Every row is a command of `lamp compile` in a process of its own, one to three minutes on two cores. Results go to a
file of JSON lines; with --table alone, they are printed as the table of launch/README.md.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_SLICES = {"v5e:1x1": "v5e-1", "v5e:2x4": "v5e-8", "v5e:4x4": "v5e-16", "v5p:2x2x1": "v5p-8", "v6e:2x4": "v6e-8"}
_SLICES |= {"tpu7x:2x2x1": "tpu7x-8"}
_GIB = 2**30


class Row(NamedTuple):
    """Compilation of one row."""

    what: str
    page: str
    topology: str
    stage: str
    options: tuple[str, ...] = ()
    slices: int = 1

    @property
    def command(self) -> list[str]:
        words = ["compile", f"configs/{self.page}.py", "--topology", self.topology, "--stage", self.stage]
        words += ["--slices", str(self.slices)] if self.slices > 1 else []
        return [*words, "--json", *(["--", *self.options] if self.options else [])]


def rows() -> Iterator[Row]:
    """Rows of the table."""
    bfloat16 = ("--dtype", "bfloat16")
    for size, topology, chips in (
        ("base", "v5e:2x4", 0),
        ("xl", "v5e:2x4", 8),
        ("xxl", "v5e:4x4", 16),
        ("xxl", "v5p:2x2x1", 4),
        ("xxl", "v6e:2x4", 8),
        ("xxl", "tpu7x:2x2x1", 8),
    ):
        name = f"FLAN-T5-{size if size == 'base' else size.upper()}"
        split = ("--sharding", "tensor", "--model-parallel", str(chips)) if chips else ("--sharding", "data")
        large = topology in {"v5p:2x2x1", "tpu7x:2x2x1"}
        train_options = ("--sharding", "fsdp", "--model-parallel", "1") if large else ()
        if topology == "v6e:2x4":
            train_options = ("--remat", "attention")
        yield Row(f"{name}, fine-tuning", f"flan_t5_{size}", topology, "train", train_options)
        yield Row(f"{name}, beam-4 generation", f"flan_t5_{size}", topology, "generate", split)
        model = ("--model", f"google/flan-t5-{size}")
        yield Row(f"{name}, likelihood feedback", "feedback_likelihood", topology, "feedback", (*model, *split))
    for size in ("base", "xl", "xxl"):
        name = f"FLAN-T5-{size if size == 'base' else size.upper()}"
        split = ("--sharding", "fsdp", "--storage", "bfloat16", "--remat", "full") if size != "base" else ()
        model = ("--model", f"google/flan-t5-{size}")
        yield Row(f"{name}, adapters of 64 users", "adapters", "v5e:2x4", "adapters", (*model, *split))
    yield Row("Contriever, ROPG-KD", "ropg_kd", "v5e:2x4", "retriever", bfloat16)
    yield Row("Longformer, RSPG", "rspg_post", "v5e:2x4", "selector", bfloat16)
    yield Row("FLAN-T5-XL, fine-tuning, 2 slices", "flan_t5_xl", "v5e:2x4", "train", slices=2)
    yield from one_chip()


def one_chip() -> Iterator[Row]:
    """Rows of one chip, as Colab's TPU, with batches and microbatches small enough for it."""
    for size, rows in (("base", "16"), ("xl", "4")):
        name, model = f"FLAN-T5-{size if size == 'base' else size.upper()}", ("--model", f"google/flan-t5-{size}")
        parts = ("--accumulation", "8" if size == "base" else "64", "--remat", "full")
        frozen = ("--storage", "bfloat16", "--remat", "full") if size == "xl" else ()
        yield Row(f"{name}, fine-tuning, {parts[1]} microbatches", f"flan_t5_{size}", "v5e:1x1", "train", parts)
        batch = ("--batch-size", rows)
        yield Row(f"{name}, beam-4 generation of {rows}", "generate", "v5e:1x1", "generate", (*model, *batch))
        yield Row(
            f"{name}, likelihood feedback of {rows}", "feedback_likelihood", "v5e:1x1", "feedback", (*model, *batch)
        )
        users = ("--users-per-step", "8", *frozen)
        yield Row(f"{name}, adapters of 8 users", "adapters", "v5e:1x1", "adapters", (*model, *users))
    parts = ("--dtype", "bfloat16", "--accumulation", "64")
    yield Row("Contriever, ROPG-KD, 64 microbatches", "ropg_kd", "v5e:1x1", "retriever", parts)
    yield Row("Longformer, RSPG, 64 microbatches", "rspg_post", "v5e:1x1", "selector", parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("runs/tpu.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the existing results, compile nothing")
    parser.add_argument("--only", default="", help="rows whose command contains this, such as v5e:1x1")
    arguments = parser.parse_args()
    lines = arguments.results.read_text().splitlines() if arguments.results.exists() else []
    found = {one["command"]: one["report"] for one in map(json.loads, lines)}
    for row in rows():
        command = " ".join(row.command)
        if arguments.only not in command:
            continue
        if command not in found and not arguments.table:
            print(f"lamp {command}", file=sys.stderr, flush=True)
            found[command] = compile_row(row)
            arguments.results.parent.mkdir(parents=True, exist_ok=True)
            with open(arguments.results, "a") as file:
                file.write(json.dumps({"command": command, "report": found[command]}) + "\n")
        if command in found:
            print(as_line(row, found[command]), flush=True)


def compile_row(row: Row) -> dict[str, Any]:
    """Report of a compilation, also where the step does not fit."""
    done = subprocess.run([sys.executable, "-m", "lamp_jax.cli", *row.command], capture_output=True, text=True)
    try:
        return json.loads(done.stdout)
    except ValueError:
        sys.exit(f"lamp {' '.join(row.command)} failed:\n{done.stdout}{done.stderr}")


def as_line(row: Row, report: dict[str, Any]) -> str:
    """Line of the table in launch/README.md."""
    memory, mesh = report["memory"], report["mesh"]
    slices = f"{row.slices} x " if row.slices > 1 else ""
    cells = [row.what, slices + _SLICES[row.topology], f"{mesh['data']} x {mesh['model']}"]
    cells += [f"{memory['peak'] / _GIB:.1f} of {memory['available'] / _GIB:.1f}", "yes" if report["fits"] else "no"]
    if report["roofline"]:
        roofline = report["roofline"]
        parts = ("compute", "hbm", "interconnect", *(["network"] if row.slices > 1 else []))
        times = [f"{roofline[part] * 1e3:.0f}" for part in parts]
        cells += [" / ".join(times), roofline["bound"], f"{report['mfu']:.0%}"]
    else:
        cells += ["", "", ""]
    return "| " + " | ".join([*cells, f"{report['compile_seconds']:.0f}"]) + " |"


if __name__ == "__main__":
    main()
