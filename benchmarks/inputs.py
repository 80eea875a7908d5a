"""Share of training time spent waiting for data, from a profiler's trace: `python benchmarks/inputs.py`.

A synthetic benchmark is written and merged, and a T5 of the demo's size is trained on it for one epoch, with
`--workers` processes that prepare the examples, and prefetched batches. Prints the share of the updates' time that was
spent waiting for a batch, and the number of examples prepared per second.
"""

import argparse
import tempfile
import time
from pathlib import Path

import jax

from lamp_jax.data.sources import JsonSource
from lamp_jax.datasets.synthetic import write_benchmark
from lamp_jax.inputs.generator import ExampleMaker, load_examples
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.options import SCRATCH, Answering, Learning, Merge, Prompting, Train
from lamp_jax.stages import merge, train
from lamp_jax.tasks.catalog import find_task
from lamp_jax.training.loop import UPDATE, WAIT

TASK = find_task("LaMP-2")


def make_files(folder: Path, questions: int, profile_size: int, words: int) -> None:
    write_benchmark(TASK, folder, questions=questions, profile_size=profile_size, words=words, seed=0, dev_questions=8)
    for part in ("train", "dev"):
        outputs = str(folder / f"{part}_outputs.json")
        merge.run(Merge(str(folder / f"{part}_questions.json"), str(folder / f"{part}.json"), outputs))


def trace_training(options: Train, folder: Path) -> list[tuple[str, float, float]]:
    """Annotated spans of a training's trace, in order: name, begin and end in nanoseconds."""
    wanted = jax.profiler.ProfileOptions()
    wanted.host_tracer_level, wanted.python_tracer_level = 1, 0  # the loop's annotations, and little else
    with jax.profiler.trace(str(folder / "trace"), profiler_options=wanted):
        train.run(options)
    (path,) = folder.glob("trace/**/*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    events = (event for plane in planes for line in plane.lines for event in line.events)
    marked = [(event.name, event.start_ns, event.end_ns) for event in events if event.name in (WAIT, UPDATE)]
    return sorted(marked, key=lambda event: event[1])


def share_of_waiting(events: list[tuple[str, float, float]], *, skip: int) -> tuple[float, float]:
    """Seconds of all updates after the first `skip`, which compile, and the share of them spent waiting for data."""
    updates = [(start, end) for name, start, end in events if name == UPDATE][skip:]
    begin, end = updates[0][0], updates[-1][1]
    waited = sum(stop - start for name, start, stop in events if name == WAIT and begin <= start and stop <= end)
    return (end - begin) / 1e9, waited / (end - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=6000)
    parser.add_argument("--profile-size", type=int, default=40)
    parser.add_argument("--words", type=int, default=40, help="per item")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder, arguments.questions, arguments.profile_size, arguments.words)
        options = Train(
            TASK.name,
            str(folder / "train.json"),
            str(folder / "dev.json"),
            str(folder / "model"),
            model=SCRATCH,
            prompting=Prompting(num_retrieved=4, max_length=256),
            learning=Learning(epochs=1.0, step_size="relative", learning_rate=0.02),
            answering=Answering(decode="labels"),
            workers=arguments.workers,
        )
        seconds, share = share_of_waiting(trace_training(options, folder), skip=20)
        print(f"updates: {seconds:.1f} s, of which {share:.2%} waiting for a batch")
        tokenizer = load_tokenizer(options.output)
        make = ExampleMaker(TASK, tokenizer, options, retriever="file", longest_answer=127)
        start = time.perf_counter()
        count = sum(1 for _ in load_examples(JsonSource(options.train), make, workers=arguments.workers))
        speed = count / (time.perf_counter() - start)
        print(f"examples: {speed:.0f} per second by {arguments.workers} processes, once per run")


if __name__ == "__main__":
    main()
