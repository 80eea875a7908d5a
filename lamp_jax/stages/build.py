"""`lamp build`: a benchmark in LaMP's format from users' histories, with a report of dropped rows and users."""

import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from lamp_jax.datasets.columns import open_history_table, split_join
from lamp_jax.datasets.dates import check_date_format
from lamp_jax.datasets.histories import GatheredHistories, gather
from lamp_jax.datasets.splits import FILES, SplitCounts, count_splits, write_parts
from lamp_jax.errors import LampError
from lamp_jax.options.data import Build
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.runs.workers import count_cores
from lamp_jax.tasks.catalog import find_task


@guard_outputs
def run(options: Build) -> None:
    output = Path(options.output)
    inputs = [options.histories, *(split_join(entry)[0] for entry in options.join)]
    _check_options(options)
    record = reserve(output, options, inputs=inputs, ignore=["work"], directory=True, makes=FILES)
    if record.state == "done":
        return print(f"{output}: already made")
    source = open_history_table(options)
    parent = record.output.absolute().parent  # visible to the other machines of a Beam pipeline
    with tempfile.TemporaryDirectory(".unfinished", f".{record.output.name}.", dir=parent) as folder:
        rows = tqdm(source.rows(), "rows", unit=" rows", disable=None)
        gathered = gather(rows, folder=Path(folder), options=options)
        counts = count_splits(gathered.buckets, options, size=gathered.size)
        total = SplitCounts.total(counts)
        _check_questions(options, total)
        record.begin()
        report = make_report(options, gathered, total)
        write_parts(record.target, gathered, counts, options=options, report=report)
    record.finish(**total.questions)
    print(summary(options, report))


def _check_options(options: Build) -> None:
    find_task(options.task)
    least = {"targets_per_user": 1, "min_profile": 0, "max_profile": 0}
    for name, number in least.items():
        if getattr(options, name) < number:
            raise LampError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be {number} or more")
    if 0 < options.max_profile < options.min_profile:
        raise LampError(f"--max-profile {options.max_profile} is less than --min-profile {options.min_profile}")
    if min(options.dev_share, options.test_share) < 0 or options.dev_share + options.test_share > 1:
        raise LampError(f"--dev-share {options.dev_share} --test-share {options.test_share}: together from 0 to 1")
    if options.date_format and options.date_form != "date":
        raise LampError("--date-form and --date-format: give one of them")
    if options.date_format:
        check_date_format(options.date_format)
    if options.split == "time" and options.targets == "random":
        raise LampError("--targets random: needs --split user; the time split asks about the last items")
    count_cores(options.work)  # raises LampError for a number below 0


def _check_questions(options: Build, total: SplitCounts) -> None:
    if not sum(total.questions.values()):
        raise LampError(
            f"{options.histories}: yields no question; users: {_counts(total.idle_users)}; a user needs more items "
            f"than --min-profile {options.min_profile}, for LaMP-1 and LaMP-7 also items with the fields of a question"
        )


def make_report(options: Build, gathered: GatheredHistories, total: SplitCounts) -> dict[str, Any]:
    """Report of the rows, users and questions that were read, dropped and written."""
    settings = {key: value for key, value in asdict(options).items() if key not in ("output", "work", "force")}
    return {
        "rows": {
            "read": gathered.rows,
            "kept": gathered.kept,
            "dropped": {reason: rows.record for reason, rows in gathered.dropped.items()},
        },
        "dates_dropped": gathered.undated.record,
        "duplicates": {
            "equal": total.duplicates["equal"],
            "dropped": total.duplicates["equal"] if options.duplicates == "drop" else 0,
            "at_another_date": total.duplicates["at another date"],
        },
        "users": {"seen": gathered.users, "without_questions": dict(total.idle_users)},
        "questions": total.questions,
        "targets_dropped": dict(total.dropped_targets),
        "profile_sizes": {part: describe_sizes(sizes) for part, sizes in total.sizes.items() if sizes},
        "settings": settings,
    }


def describe_sizes(sizes: Counter[int]) -> dict[str, float]:
    """Minimum, median, mean and maximum of sizes, given the count of each size."""
    ordered, count = sorted(sizes.items()), sizes.total()

    def at(rank: int) -> int:
        for size, times in ordered:
            rank -= times
            if rank < 0:
                return size
        raise IndexError(rank)

    return {
        "min": ordered[0][0],
        "median": (at((count - 1) // 2) + at(count // 2)) / 2,
        "mean": sum(size * times for size, times in ordered) / count,
        "max": ordered[-1][0],
    }


def summary(options: Build, report: dict[str, Any]) -> str:
    """Report as a short table."""
    rows, users = report["rows"], report["users"]
    dropped = {reason: found["count"] for reason, found in rows["dropped"].items()}
    lines = [
        f"{options.output}: {options.task}, {options.split} split",
        f"rows     {rows['read']} read, {rows['kept']} kept; dropped: {_counts(dropped)}",
        f"users    {users['seen']} seen; without questions: {_counts(users['without_questions'])}",
        f"targets  dropped: {_counts(report['targets_dropped'])}",
    ]
    equal, later = report["duplicates"]["equal"], report["duplicates"]["at_another_date"]
    if equal or later:
        what = "dropped" if options.duplicates == "drop" else "kept, also where a question asks about one of them"
        text = f"{equal} rows equal to another of their user ({what}); {later} but for the date"
        lines.insert(2, f"duplicates {text}")
    if undated := report["dates_dropped"]["count"]:
        lines.insert(2, f"dates    {undated} cannot be read, and all dates of their users are left out")
    for part, count in report["questions"].items():
        sizes = report["profile_sizes"].get(part)
        about = "no files" if sizes is None else ", ".join(f"{name} {size:g}" for name, size in sizes.items())
        lines.append(f"{part:<8} {count} questions; profiles: {about}")
    return "\n".join(lines)


def _counts(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "none"
