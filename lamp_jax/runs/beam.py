"""Ordered parallel map in an Apache Beam pipeline, on one machine or many."""

import contextlib
import io
import os
import pickle
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from lamp_jax.config import Work
from lamp_jax.errors import LampError

Piece = TypeVar("Piece")
Result = TypeVar("Result")

# Beam has no short name for this runner.
_DASK_RUNNER = "apache_beam.runners.dask.dask_runner.DaskRunner"
# Dask's scheduler spends about a millisecond on a partition.
_DASK_PARTITIONS = 10_000


def map_in_beam(function: Callable[[Piece], Result], pieces: Iterable[Piece], work: Work) -> Iterator[Result]:
    """Results of `function` for every piece, in the order of the pieces, once the pipeline has ended.

    Function, pieces and results are stored in files below `work.beam_staging`, which all machines must see, so the
    pipeline has only numbers, and no process holds all results. A LampError of `function` is raised here; so is one for
    a missing package, unknown options, and a pipeline that ends without all results.
    """
    _check_installed(work.beam_runner)
    _check_staging(work)
    _check_options(work)
    folder = os.path.abspath(work.beam_staging) if work.beam_staging else None
    # After an error a worker may still write to it.
    with tempfile.TemporaryDirectory(dir=folder, prefix="lamp-beam-", ignore_cleanup_errors=True) as staging:
        starts = _write_pieces(function, pieces, staging)
        _run_pipeline(starts, staging, work)
        _check_complete(starts, staging, work)
        for number in range(len(starts)):
            path = Path(staging, str(number))
            result = pickle.loads(path.read_bytes())
            path.unlink()
            if isinstance(result, LampError):
                raise result
            yield result


def _check_installed(runner: str) -> None:
    try:
        import apache_beam  # noqa: F401
    except ImportError:
        raise LampError("--beam-runner: Apache Beam is not installed; pip install 'lamp_jax[beam]'") from None
    if runner == "DaskRunner":
        try:
            import dask.distributed  # noqa: F401
            from apache_beam.runners.dask import dask_runner  # noqa: F401  (and Beam then knows its options)
        except ImportError:
            raise LampError(
                "--beam-runner DaskRunner: Dask is not installed; pip install 'lamp_jax[dask]', here and on all workers"
            ) from None


def _check_staging(work: Work) -> None:
    if work.beam_runner != "DirectRunner" and not work.beam_staging:
        raise LampError(f"--beam-runner {work.beam_runner}: give --beam-staging, a directory that all machines see")
    if work.beam_staging and not Path(work.beam_staging).is_dir():
        raise LampError(f"--beam-staging {work.beam_staging}: no such directory; create it")


def _check_options(work: Work) -> None:
    options = _pipeline_options(work)
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:  # the usage of all of Beam's options
            known = options.get_all_options()
            unknown = options.get_all_options(retain_unknown_options=True).keys() - known.keys()
    except SystemExit:
        raise LampError(f"--beam-options: {said.getvalue().rpartition('error: ')[2].strip()}") from None
    if unknown:
        given = (option for option in work.beam_options if option.partition("=")[0] in unknown)
        raise LampError(f"--beam-options: unknown options of Beam: {', '.join(given)}")
    # Dask's client would wait for this file for ever.
    if (file := known.get("scheduler_file")) and not Path(file).is_file():
        raise LampError(f"--beam-options dask_scheduler_file={file}: no such file; start `dask scheduler` first")


def _pipeline_options(work: Work, *more: str) -> Any:
    from apache_beam.options.pipeline_options import PipelineOptions

    return PipelineOptions([f"--{option}" for option in (*work.beam_options, *more)])


def _write_pieces(function: Callable[[Any], Any], pieces: Iterable[Any], staging: str) -> list[int]:
    """Writes the function and the pieces, and returns the offset of each piece in their file."""
    Path(staging, "function").write_bytes(pickle.dumps(function))
    starts = []
    with open(Path(staging, "pieces"), "wb") as file:
        for piece in pieces:
            starts.append(file.tell())
            file.write(pickle.dumps(piece))
    return starts


def _run_pipeline(starts: list[int], staging: str, work: Work) -> None:
    """Runs the pipeline to its end.

    It has a single last transform: Beam 2.77's DaskRunner executes only the last one, and reports success.
    """
    import apache_beam

    is_dask = work.beam_runner == "DaskRunner"
    options = _pipeline_options(work, *_partition_size(len(starts), work) if is_dask else ())
    pipeline = apache_beam.Pipeline(runner=_DASK_RUNNER if is_dask else work.beam_runner, options=options)
    todo = pipeline | apache_beam.Create(list(enumerate(starts))) | apache_beam.Reshuffle()
    _ = todo | apache_beam.Map(_run_piece, staging=staging)
    if is_dask:
        _run_in_dask(pipeline)
    else:
        pipeline.run().wait_until_finish()


def _run_in_dask(pipeline: Any) -> None:
    """Runs a pipeline, and closes the connection to the scheduler, which Beam leaves open."""
    from distributed import KilledWorker

    try:
        result = pipeline.run()
    except OSError as error:
        raise LampError(
            f"--beam-runner DaskRunner: {error}; start `dask scheduler` and `dask worker`, and give the scheduler's "
            "address: --beam-options dask_client_address=tcp://HOST:8786"
        ) from None
    try:
        result.wait_until_finish()
    except KilledWorker as error:
        raise LampError(
            f"--beam-runner DaskRunner: worker processes died ({error}); see their logs, or give them more memory"
        ) from None
    finally:
        result.client.close()


def _partition_size(count: int, work: Work) -> tuple[str, ...]:
    """Option for the number of pieces in a partition, which one worker computes alone: one, unless they are many.

    Beam's default is 128.
    """
    if any(option.startswith(("dask_npartitions", "dask_partition_size")) for option in work.beam_options):
        return ()
    return (f"dask_partition_size={1 + count // _DASK_PARTITIONS}",)


def _run_piece(numbered: tuple[int, int], *, staging: str) -> None:
    (number, start), machine = numbered, socket.gethostname()
    if not Path(staging).is_dir():
        raise LampError(f"--beam-staging: machine {machine} has no directory {staging}; give one that all machines see")
    try:
        result = _function(staging)(_read_piece(start, staging))
    except LampError as error:
        result = error
    except OSError as error:
        result = LampError(f"machine {machine}: {error}; all machines must see the same files: give absolute paths")
    # Beam may run a piece twice, after a worker that it considers lost: the rename keeps the file complete.
    unfinished = Path(staging, f"{number}.{machine}.{os.getpid()}.unfinished")
    unfinished.write_bytes(pickle.dumps(result))
    unfinished.replace(Path(staging, str(number)))


def _read_piece(start: int, staging: str) -> Any:
    with open(Path(staging, "pieces"), "rb") as file:
        file.seek(start)
        return pickle.load(file)


@lru_cache(maxsize=1)
def _function(staging: str) -> Callable[[Any], Any]:
    """Function of a pipeline, by its staging directory. A worker may live longer than the pipeline."""
    return pickle.loads(Path(staging, "function").read_bytes())


def _check_complete(starts: list[int], staging: str, work: Work) -> None:
    missing = [number for number in range(len(starts)) if not Path(staging, str(number)).exists()]
    if missing:
        first = f"{_read_piece(starts[missing[0]], staging)!r:.200}"
        raise LampError(
            f"--beam-runner {work.beam_runner}: the pipeline ended without {len(missing)} of {len(starts)} results, "
            f"the first of them that of {first}; is {os.path.dirname(staging)} the same directory on all machines?"
        )
