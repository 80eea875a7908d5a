"""`lamp tfds`: a TensorFlow dataset of a task's files in a tree, with random access to questions."""

import contextlib
import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lamp_jax.data.layout import find_parts
from lamp_jax.data.patches import find_patches
from lamp_jax.data.sources import PROFILES, open_dataset
from lamp_jax.options.data import Tfds
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.tasks.catalog import find_task

_BUILDING = ".building.unfinished"
"""Directory to which TFDS writes, in its own subdirectories (`lamp/CONFIG/VERSION`)."""


@guard_outputs
def run(options: Tfds) -> None:
    # Imported here: the import takes half a second, and other commands do not need it.
    from lamp_jax.datasets.builder import Lamp, ReadOptions, TreeScan, config_name

    task = find_task(options.task)
    patches = options.compatibility.patches
    find_patches(patches)
    files = find_parts(options.data, task, options.split)
    inputs = [str(path) for pair in files.values() for path in pair if path]
    config = config_name(task, options.split)
    place = Path(options.output, "lamp", config)
    # The dataset depends on the files, not on the path of their tree.
    record = reserve(place, options, inputs=inputs, ignore=["data", "work"], directory=True, makes=["*.*.*/*"])
    if record.state == "done":
        return print(f"{place}: already made")
    scan = TreeScan(options.data, ReadOptions(task, options.split, patches, options.work))
    record.begin()
    building = record.target / _BUILDING
    shutil.rmtree(building, ignore_errors=True)  # left by a killed command
    builder = Lamp(data_dir=str(building), config=config, source=scan)
    # TFDS creates a directory and prints lines for downloads, although there are none.
    with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=downloads)
    made = Path(builder.data_dir)
    version = record.target / made.name
    shutil.rmtree(version, ignore_errors=True)
    os.replace(made, version)
    shutil.rmtree(building)
    facts = describe(str(version))
    record.finish(**facts)
    print(_summary(str(place / made.name), facts))


def describe(directory: str) -> dict[str, Any]:
    """Numbers of questions by split and of distinct profiles, and bytes of the dataset and of its source files."""
    info = open_dataset(directory).info
    counts = {name: split.num_examples for name, split in info.splits.items()}
    profiles = counts.pop(PROFILES)
    return {
        "questions": counts,
        "distinct_profiles": profiles,
        "bytes": sum(path.stat().st_size for path in Path(directory).iterdir()),
        "bytes_of_files": sum(source["bytes"] for source in info.metadata["sources"].values()),
    }


def _summary(directory: str, facts: dict[str, Any]) -> str:
    questions = sum(facts["questions"].values())
    parts = ", ".join(f"{name} {count}" for name, count in facts["questions"].items())
    return (
        f"{directory}: {questions} questions ({parts}) with {facts['distinct_profiles']} distinct profiles; "
        f"{facts['bytes'] / 1e6:.1f} MB, of {facts['bytes_of_files'] / 1e6:.1f} MB of JSON"
    )
