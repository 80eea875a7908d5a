#!/usr/bin/env bash
# Beam 2.77.0's DaskRunner, with Dask 2026.8.0 and clusters on this machine.
#
# - A pipeline with two sinks: guess, both are executed, as by every other runner. Seen: only the sink that was applied
#   last is, the state is DONE, and no message says so. The runner computes the last transform alone.
# - Two transforms, one after the other, on a worker in the same process (`LocalCluster(processes=False)`), with
#   partitions of one element: guess, the second receives 40 elements. Seen: it receives 820 = 1 + 2 + ... + 40, and the
#   state is DONE. All partitions of a transform share one list of outputs, which is copied only where a worker is another
#   process. Sums of groups are wrong in the same way.
# - Forty elements and beam.Reshuffle, two workers: guess, both compute. Seen: one does, because a partition has 128
#   elements by default (in earlier versions: one) and Reshuffle does nothing. `--dask_partition_size=1` uses both.
# - runner="DaskRunner" is refused, unlike the names of all other runners; only the class's full path is accepted.
#
# Exit status 1: the behaviour changed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet apache-beam==2.77.0 dask==2026.8.0 distributed==2026.8.0
cd "$folder"
cat > pipelines.py <<'PY'
import logging
import os
import sys
from functools import partial
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from distributed import LocalCluster

DASK_RUNNER = "apache_beam.runners.dask.dask_runner.DaskRunner"
ONE = ["--dask_partition_size=1"]


def note(number, path):
    with open(path, "a") as file:
        file.write(f"{number} {os.getpid()}\n")


def same(number):
    return number


def run(cluster, *sinks, options=(), middle=()):
    """State of the pipeline; for each sink the number of elements that it received and of processes that ran it."""
    options = [f"--dask_client_address={cluster.scheduler_address}", *options]
    pipeline = beam.Pipeline(runner=DASK_RUNNER, options=PipelineOptions(options))
    numbers = pipeline | beam.Create(range(40)) | beam.Reshuffle()
    for function in middle:
        numbers = numbers | beam.Map(function)
    for sink in sinks:
        _ = numbers | sink >> beam.Map(partial(note, path=sink))
    result = pipeline.run()
    state = result.wait_until_finish()
    result.client.close()
    lines = [Path(sink).read_text().splitlines() if Path(sink).exists() else [] for sink in sinks]
    return state, *((len(found), len({line.split()[1] for line in found})) for found in lines)


logging.disable()  # in the workers too, which import this file


def main():
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        found = {
            "two sinks": run(cluster, "first", "second"),
            "partitions of one element": run(cluster, "third", options=ONE),
            "two transforms": run(cluster, "fourth", options=ONE, middle=[same]),
        }
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        found["two transforms in this process"] = run(cluster, "fifth", options=ONE, middle=[same])
    try:
        beam.Pipeline(runner="DaskRunner")
        found["by name"] = "accepted"
    except ValueError as error:
        found["by name"] = str(error).partition(".")[0]
    print("\n".join(f"{what}: {value}" for what, value in found.items()))
    return found != {
        "two sinks": ("DONE", (0, 0), (40, 1)),
        "partitions of one element": ("DONE", (40, 2)),
        "two transforms": ("DONE", (40, 2)),
        "two transforms in this process": ("DONE", (820, 1)),
        "by name": "Unexpected pipeline runner: DaskRunner",
    }


if __name__ == "__main__":
    sys.exit(main())
PY
"$folder/venv/bin/python" pipelines.py
