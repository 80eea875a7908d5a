"""`lamp avocado`: LaMP-6 from the licensed archives and the benchmark's id files."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tqdm.auto import tqdm

from lamp_jax.data.layout import PARTS
from lamp_jax.datasets import avocado
from lamp_jax.datasets.avocado import Mail, MailLocations
from lamp_jax.errors import LampError
from lamp_jax.options.data import Avocado
from lamp_jax.runs.json_files import atomic_write
from lamp_jax.runs.outputs import entries, read_record
from lamp_jax.runs.records import RunRecord, guard_outputs, reserve
from lamp_jax.runs.workers import count_cores

_MISSING = "missing.txt"
_FILES = (*(f"{part}_{kind}.json" for part in PARTS for kind in ("questions", "outputs")), _MISSING)
_SHOWN = 20


@guard_outputs
def run(options: Avocado) -> None:
    _check_options(options)
    files = avocado.find_id_files(options.ids)
    _forget_missing(Path(options.output))
    inputs = map(str, files.values())
    reads = [options.archives, options.ids]
    record = reserve(options.output, options, inputs=inputs, reads=reads, ignore=["work"], directory=True, makes=_FILES)
    if record.state == "done":
        return print(f"{options.output}: already made")
    archives = avocado.find_archives(options.archives)
    requested = avocado.read_ids(files)
    located = avocado.locate_mails(tqdm(archives, "archives", disable=None), requested.mails)
    missing = sorted(requested.mails - located.ids)
    if missing and options.missing == "stop":
        raise _missing_error(options, record, missing=missing, wanted=len(requested.mails))
    avocado.check_parts_not_empty(requested, located)
    mails = _read_mails(options, located)
    record.begin()
    _write_missing(record.target, missing)
    counts = {part: avocado.write_part(part, path, record.target, mails=mails) for part, path in files.items()}
    record.finish(missing=len(missing), copies=located.copies, **counts)
    print(_summary(options, counts, located=located, missing=len(missing)))


def _check_options(options: Avocado) -> None:
    if options.work.beam_runner != "none":
        raise LampError(f"--beam-runner {options.work.beam_runner}: lamp avocado runs on one machine; leave it out")
    count_cores(options.work)  # raises LampError for a number below 0


def _forget_missing(output: Path) -> None:
    """Removes the file of a run that stopped for missing mails, so that the next run may have other settings."""
    record = read_record(output) if output.is_dir() else None
    if record and record.get("stage") == "avocado" and list(entries(output)) == [output / _MISSING]:
        (output / _MISSING).unlink()


def _missing_error(options: Avocado, record: RunRecord, *, missing: list[str], wanted: int) -> LampError:
    record.begin()
    _write_missing(record.target, missing)
    shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
    return LampError(
        f"{options.archives}: {len(missing)} of {wanted} mails are in no archive ({shown}); {record.target / _MISSING} "
        "lists all; complete the archives, or leave out the items and questions of these mails with --missing drop"
    )


def _write_missing(output: Path, missing: list[str]) -> None:
    path = output / _MISSING
    if not missing:
        return path.unlink(missing_ok=True)  # of an earlier run
    with atomic_write(path) as file:
        file.writelines(f"{key}\n" for key in missing)


def _read_mails(options: Avocado, located: MailLocations) -> dict[str, Mail]:
    found = avocado.read_mails(located, replies=options.replies, workers=count_cores(options.work))
    mails: dict[str, Mail] = {}
    for some in tqdm(found, "mails", len(located.members), disable=None):
        mails |= some
    return mails


def _summary(options: Avocado, counts: Mapping[str, Counter[str]], *, located: MailLocations, missing: int) -> str:
    total = sum(counts.values(), Counter())
    written = ", ".join(f"{part} {count['questions']}" for part, count in counts.items())
    lines = [f"{options.output}: questions of LaMP-6 ({written}) from {len(located.ids)} mails"]
    if "test" not in counts:
        lines.append(f"{options.ids}: no test_questions.json, so no test file was written")
    if located.copies:
        lines.append(f"{located.copies} further copies of mails were ignored; the copy in the first archive is used")
    if missing:
        lines.append(
            f"left out: {total['dropped_questions']} questions, and {total['dropped_items']} items of the others; "
            f"{Path(options.output) / _MISSING} lists {missing} mails that no archive has"
        )
    return "\n".join(lines)
