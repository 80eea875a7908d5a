"""Ordered parallel map in an Apache Beam pipeline, on one machine or many."""

import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from lamp_jax.config import Work
from lamp_jax.errors import LampError

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def map_in_beam(function: Callable[[Piece], Result], pieces: Iterable[Piece], work: Work) -> Iterator[Result]:
    """Results of `function` for every piece, in the order of the pieces, once the pipeline has ended.

    Each result is stored in a file named by its number below `work.beam_staging`, which all machines must see, so no
    process holds all results. A LampError of `function` is raised here; so is one for missing Beam or unknown options.
    """
    pipeline = _open_pipeline(work)
    with tempfile.TemporaryDirectory(dir=work.beam_staging or None, prefix="lamp-beam-") as staging:
        count = _run_pipeline(pipeline, function, pieces, staging)
        for number in range(count):
            path = Path(staging, str(number))
            result = pickle.loads(path.read_bytes())
            path.unlink()
            if isinstance(result, LampError):
                raise result
            yield result


def _open_pipeline(work: Work) -> Any:
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise LampError("--beam-runner: Apache Beam is not installed; pip install 'lamp_jax[beam]'") from None
    if work.beam_runner != "DirectRunner" and not work.beam_staging:
        raise LampError(f"--beam-runner {work.beam_runner}: give --beam-staging, a directory that all machines see")
    if work.beam_staging and not Path(work.beam_staging).is_dir():
        raise LampError(f"--beam-staging {work.beam_staging}: no such directory; create it")
    options = PipelineOptions([f"--{option}" for option in work.beam_options])
    known = options.get_all_options()
    unknown = [option for option in work.beam_options if option.partition("=")[0] not in known]
    if unknown:
        raise LampError(f"--beam-options: unknown options of Beam: {', '.join(unknown)}")
    return apache_beam.Pipeline(runner=work.beam_runner, options=options)


def _run_pipeline(pipeline: Any, function: Callable[[Any], Any], pieces: Iterable[Any], staging: str) -> int:
    """Runs the pipeline to its end and returns the number of pieces."""
    import apache_beam

    numbered = [(number, pickle.dumps(piece)) for number, piece in enumerate(pieces)]
    with pipeline:
        todo = pipeline | apache_beam.Create(numbered) | apache_beam.Reshuffle()
        _ = todo | apache_beam.Map(_run_piece, function=function, staging=staging)
    return len(numbered)


def _run_piece(numbered: tuple[int, bytes], *, function: Callable[[Any], Any], staging: str) -> None:
    number, piece = numbered
    try:
        result = function(pickle.loads(piece))
    except LampError as error:
        result = error
    # Beam may run a piece twice, after a worker that it considers lost: the rename keeps the file complete.
    unfinished = Path(staging, f"{number}.{os.getpid()}.unfinished")
    unfinished.write_bytes(pickle.dumps(result))
    unfinished.replace(Path(staging, str(number)))
