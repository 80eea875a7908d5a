"""`lamp rank --all`: ranking and merging of every file of a tree, several at once; or a plan with the time."""

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from lamp_jax.config import Part, Work
from lamp_jax.data.chunks import cut_chunks
from lamp_jax.data.files import stream_questions
from lamp_jax.data.layout import find_parts
from lamp_jax.errors import LampError
from lamp_jax.options.retrieval import Merge, Rank
from lamp_jax.retrieval.chunks import rank_chunk
from lamp_jax.retrieval.rankers import Need, find_ranker, names_by_need
from lamp_jax.runs.processes import on_first
from lamp_jax.runs.records import record_path
from lamp_jax.runs.urls import naming_urls
from lamp_jax.runs.workers import count_cores, map_in_processes
from lamp_jax.stages import merge, rank_file
from lamp_jax.tasks.catalog import TASKS, Task, find_task

# Tokens per second of an encoder of BERT-base's size on one core, and bytes per token of English JSON.
_TOKENS_A_SECOND = 750
_BYTES_A_TOKEN = 4.5


@dataclass(frozen=True)
class Job:
    """Ranking and merging of one file of the tree."""

    task: Task
    part: Part
    outputs: Path | None
    ranking: Rank
    merging: Merge

    @property
    def size(self) -> int:
        return os.path.getsize(self.ranking.questions)

    @property
    def needs(self) -> tuple[Need, ...]:
        return find_ranker(self.ranking.ranker or "").needs

    @property
    def done(self) -> bool:
        return record_path(Path(self.merging.output)).exists()


def run(options: Rank) -> None:
    jobs = plan_jobs(options)
    if options.plan:
        return print_plan(jobs, options)
    on_device = [job for job in jobs if "encoder" in job.needs]
    errors = on_first(lambda: [*_run_on_host([job for job in jobs if job not in on_device], options)])
    errors += map(_run, on_device)
    errors = [error for error in errors if error]
    print(f"{options.output}: {len(jobs) - len(errors)} of {len(jobs)} files are ranked and merged")
    if errors:
        raise LampError("\n".join([f"{len(errors)} of {len(jobs)} files failed:", *errors]))


def plan_jobs(options: Rank) -> list[Job]:
    """Jobs for all files of the tasks in the tree, the largest file first. LampError if there are none."""
    if options.questions or options.rankings or options.scores:
        raise LampError("--all ranks a complete tree: leave --questions, --rankings and --scores out")
    if options.ranker in names_by_need("rankings"):
        fuses = f"{options.ranker} fuses existing rankings"
        raise LampError(f"--all: {fuses}; rank each file with --questions and --rankings")
    named = options.tasks or ((options.task,) if options.task else ())
    tasks = [find_task(name) for name in named] or [task for task in TASKS.values() if not task.deprecated]
    jobs: list[Job] = []
    for task in tasks:
        try:
            parts = find_parts(options.all, task, options.split)
        except LampError:
            if named:
                raise
            continue
        for part, (questions, outputs) in parts.items():
            if not named and questions.parent == Path(options.all):
                raise LampError(f"{questions}: is not in a task's folder; name its task with --tasks")
            if _holds_ids(questions):
                print(f"{questions}: has only ids of mails and is left out; make {task.name} with `lamp avocado`")
            else:
                jobs.append(_job(options, task, part, questions, outputs))
    if not jobs:
        raise LampError(
            f"{options.all}: no questions of any task, {options.split} split; is it a tree of lamp download?"
        )
    return sorted(jobs, key=lambda job: -job.size)


def _holds_ids(questions: Path) -> bool:
    """True if the first input is a single word, an id: LaMP-6 as published. Its ranking reports a damaged file."""
    try:
        return next((len(question.input.split()) == 1 for question in stream_questions(questions)), False)
    except LampError:
        return False


def _job(options: Rank, task: Task, part: Part, questions: Path, outputs: Path | None) -> Job:
    ranker = rank_file.choose_ranker(options, task)
    folder = Path(options.output) / ("time" if options.split == "time" else "") / task.tree_folder
    ranking = replace(
        options,
        all="",
        tasks=(),
        task=task.name,
        questions=str(questions),
        output=str(folder / f"{part}_{ranker}.ranking.json"),
        ranker=ranker,
    )
    merging = Merge(
        str(questions),
        str(folder / f"{part}_{ranker}.json"),
        outputs=str(outputs or ""),
        ranking=ranking.output,
        work=options.work,
        compatibility=options.compatibility,
        force=options.force,
    )
    return Job(task, part, outputs, ranking, merging)


def _run_on_host(jobs: list[Job], options: Rank) -> Iterator[str]:
    """Runs several jobs at once, which share the cores, or one after another as Beam pipelines; yields their errors."""
    cores = count_cores(options.work)
    at_once = min(len(jobs), cores, max(2, math.isqrt(cores)))
    if options.work.beam_runner != "none" or at_once < 2:
        yield from map(_run, jobs)
        return
    share = replace(options.work, workers=max(1, cores // at_once))
    yield from map_in_processes(partial(_run, work=share), jobs, processes=at_once)


def _run(job: Job, *, work: Work | None = None) -> str:
    """Ranks and merges one file; returns the error message, "" on success."""
    work = work or job.ranking.work
    try:
        with naming_urls():  # also needed in other processes
            rank_file.run(replace(job.ranking, work=work))
            on_first(lambda: merge.run(replace(job.merging, work=work)))
    except LampError as error:
        return f"{job.task.name} {job.part}: {error}"
    return ""


def print_plan(jobs: list[Job], options: Rank) -> None:
    """Prints the jobs with an estimate of the time, measured on a sample of each file unless it needs an encoder."""
    print(f"{'task':9} {'part':6} {'ranker':8} {'MB':>7} {'about':>9}  merged file")
    seconds, errors = 0.0, []
    for job in jobs:
        try:
            about = 0.0 if job.done else estimate(job, options)
            shown = "done" if job.done else _in_words(about)
        except LampError as error:
            about, shown = 0.0, "error"
            errors.append(f"{job.task.name} {job.part}: {error}")
        seconds += about
        known = f"{job.task.name:9} {job.part:6} {job.ranking.ranker:8} {job.size / 1e6:7.1f}"
        print(f"{known} {shown:>9}  {job.merging.output}")
    print(f"{sum(not job.done for job in jobs)} of {len(jobs)} files to do, about {_in_words(seconds)} on this machine")
    encoding = {str(job.ranking.ranker) for job in jobs if "encoder" in job.needs and not job.done}
    if encoding:
        about = "estimated for this machine's cores, at most (equal texts are read once); use an accelerator"
        print(f"{', '.join(sorted(encoding))}: {about}")
    if errors:
        raise LampError("\n".join([f"{len(errors)} of {len(jobs)} files would fail:", *errors]))


def estimate(job: Job, options: Rank) -> float:
    """Estimated seconds for one file: from the time of ranking a sample, or from its tokens for an encoder."""
    cores = count_cores(options.work)
    if "encoder" in job.needs:
        return job.size / _BYTES_A_TOKEN / _TOKENS_A_SECOND / cores
    ranker, given = job.ranking.ranker or "", rank_file.options_of(job.ranking)
    start, size = time.perf_counter(), 0
    for chunk in islice(cut_chunks(job.ranking.questions), 2):
        rank_chunk(chunk, ranker=ranker, task=job.task, options=given)
        size += chunk.ends[-1] - chunk.starts[0]
    return (time.perf_counter() - start) * job.size / size / cores


def _in_words(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
