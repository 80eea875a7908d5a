"""`lamp rank --questions`: ranking of one file.

A ranker reads questions only, or also other rankings, or uses an encoder on devices.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

from tqdm.auto import tqdm

from lamp_jax.data.chunks import map_chunks
from lamp_jax.data.files import QuestionFile, check_same_ids, check_unique
from lamp_jax.errors import LampError
from lamp_jax.options.retrieval import Rank
from lamp_jax.retrieval.chunks import rank_chunk
from lamp_jax.retrieval.dense import EmbeddingCache
from lamp_jax.retrieval.encoders import EncoderSettings, choose_dates
from lamp_jax.retrieval.rankers import Ranker, RankOptions, find_ranker, names_by_need
from lamp_jax.retrieval.ranking import RankedLine, RankingFile, encode_ranking, open_ranking, write_rankings
from lamp_jax.runs.outputs import check_apart
from lamp_jax.runs.processes import is_first, on_first, process_count
from lamp_jax.runs.records import digest, guard_outputs, reserve
from lamp_jax.tasks.catalog import Task, find_task


def run(options: Rank) -> None:
    if not options.task or not options.questions:
        raise LampError("give --task and --questions, or a tree of files with --all")
    if options.plan or options.tasks:
        raise LampError("--plan and --tasks are for a tree of files: give it with --all")
    task = find_task(options.task)
    ranker = find_ranker(choose_ranker(options, task))
    if "encoder" in ranker.needs:
        _rank(options, task, ranker)
    else:
        on_first(lambda: _rank(options, task, ranker))


@guard_outputs
def _rank(options: Rank, task: Task, ranker: Ranker) -> None:
    if options.rankings and "rankings" not in ranker.needs:
        fusing = " or ".join(names_by_need("rankings"))
        raise LampError(f"--rankings is only for --ranker {fusing}, not for {ranker.name}")
    inputs = [options.questions, *options.rankings] + [options.encoder] * ("encoder" in ranker.needs)
    if options.embeddings_cache:
        on_first(lambda: check_apart([Path(options.embeddings_cache)], inputs))
    ignore, beside = ["work", "embeddings_cache", "batch_tokens"], {"scores": options.scores}
    record = reserve(options.output, options, inputs=inputs, ignore=ignore, beside=beside)
    if record.state == "done":
        return print(f"{options.output}: already ranked")
    encoder: list[EncoderSettings] = []
    if "encoder" in ranker.needs:
        found = _by_encoder(options, task, ranker, encoder=encoder)
    else:
        found = _by_chunks(options, task, ranker)
    lines = tqdm(found, "rank", unit=" questions", disable=None)
    record.begin()
    if is_first():
        count = write_rankings(record.target, lines, scores=record.beside("scores") if options.scores else "")
    else:  # the encoder computes on the devices of all processes
        count = sum(1 for _ in lines)
    record.finish(questions=count, **({"encoder": asdict(encoder[0])} if encoder else {}))
    print(f"{options.output}: {count} rankings by {ranker.name}{f' ({encoder[0]})' if encoder else ''}")


def choose_ranker(options: Rank, task: Task) -> str:
    """Name of the selected ranker, with the default and `best` resolved."""
    ranker = options.ranker or ("best" if options.all else "bm25")
    return task.best.of(options.split) if ranker == "best" else ranker


def options_of(options: Rank) -> RankOptions:
    """Options of a ranker. It has one worker, because several processes rank chunks at the same time."""
    return RankOptions(
        use_date=options.use_date,
        variant=options.bm25_variant,
        seed=options.seed,
        workers=1,
        rrf_k=options.rrf_k,
        compatibility=options.compatibility,
    )


def _by_chunks(options: Rank, task: Task, ranker: Ranker) -> Iterator[RankedLine]:
    """Rankings of a file that is streamed in chunks to several processes."""
    run_id = uuid4().hex
    rankings = {path: open_ranking(path, run_id) for path in options.rankings}
    given = {"ranker": ranker.name, "task": task, "options": options_of(options)}
    rank = partial(rank_chunk, **given, rankings=tuple(options.rankings), run_id=run_id)
    seen: set[str] = set()
    ids: list[str] = []
    for line in chain.from_iterable(map_chunks(rank, options.questions, options.work)):
        check_unique([line.question_id], seen, options.questions)
        ids.append(line.question_id)
        yield line
    for path, ranking in rankings.items():  # before the output is in place
        check_same_ids(ids, ranking, left="the questions", right=path)


def _by_encoder(options: Rank, task: Task, ranker: Ranker, *, encoder: list[EncoderSettings]) -> Iterator[RankedLine]:
    """Rankings by an encoder on devices. Adds the encoder's settings to `encoder`."""
    questions = QuestionFile(options.questions, task, options.compatibility.patches)
    for _ in questions:  # errors in the file are reported before the encoder is loaded
        pass
    if options.embeddings_cache and process_count() > 1:
        raise LampError(f"--embeddings-cache works with one process, and there are {process_count()}; leave it out")
    # Imported here: other rankers need no device, and each of their processes would initialize one.
    import jax

    from lamp_jax.encoding import open_encoder
    from lamp_jax.sharding import open_mesh

    with jax.set_mesh(open_mesh(options.devices)):
        opened = open_encoder(
            options.encoder,
            options.devices,
            options.encoding,
            max_length=options.max_length,
            batch_tokens=options.batch_tokens,
        )
        encoder.append(opened.settings)
        queries, documents = (None if opened.queries is opened.documents else opened.queries), opened.documents
        if options.embeddings_cache:
            cache = EmbeddingCache(options.embeddings_cache, _describe(options, opened.settings))
            queries, documents = queries and cache.wrap(queries, of_queries=True), cache.wrap(documents)
        given = replace(
            options_of(options),
            rankings={path: RankingFile(path) for path in options.rankings},
            embed=documents,
            embed_query=queries,
            similarity=opened.settings.similarity,
            use_date=choose_dates(opened.settings, use_date=options.use_date, name=options.encoder),
        )
        try:
            yield from map(encode_ranking, ranker.rank(questions, task, given))
        except LampError as error:
            raise LampError(f"{options.questions}: {error}") from error


def _describe(options: Rank, settings: EncoderSettings) -> dict[str, Any]:
    """Properties on which vectors depend, the text aside."""
    return {"encoder": digest(options.encoder), "dtype": options.devices.dtype, **settings.of_vectors}
