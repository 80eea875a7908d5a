"""`lamp rank --questions`: how one file is ranked, by the rankers that need no device, a fusion or an encoder."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lamp_jax.data.chunks import map_chunks
from lamp_jax.data.files import Question, check_unique, read_questions
from lamp_jax.errors import LampError
from lamp_jax.options.retrieval import Rank
from lamp_jax.retrieval.dense import EmbeddingCache, rank_dense
from lamp_jax.retrieval.encoders import EncoderSettings
from lamp_jax.retrieval.fusion import fuse_rankings
from lamp_jax.retrieval.ranking import (
    RankedLine,
    RankingFile,
    RankOptions,
    encode_ranking,
    rank_chunk,
    write_rankings,
)
from lamp_jax.runs.outputs import check_apart
from lamp_jax.runs.processes import how_many, on_first
from lamp_jax.runs.records import digest, guard_outputs, reserve
from lamp_jax.tasks.catalog import Task, find_task


def run(options: Rank) -> None:
    if not options.task or not options.questions:
        raise LampError("give --task and --questions, or a tree of files with --all")
    if options.plan or options.tasks:
        raise LampError("--plan and --tasks are for a tree of files: give it with --all")
    task = find_task(options.task)
    ranker = choose_ranker(options, task)
    if ranker == "dense":
        _rank(options, task, ranker)
    else:
        on_first(lambda: _rank(options, task, ranker))


@guard_outputs
def _rank(options: Rank, task: Task, ranker: str) -> None:
    if options.rankings and ranker != "rrf":
        raise LampError(f"--rankings are fused by --ranker rrf, and this is {ranker}")
    inputs = [options.questions, *options.rankings] + [options.encoder] * (ranker == "dense")
    if options.embeddings_cache:
        on_first(lambda: check_apart([Path(options.embeddings_cache)], inputs))
    ignore, beside = ["work", "embeddings_cache", "batch_tokens"], {"scores": options.scores}
    record = reserve(options.output, options, inputs=inputs, ignore=ignore, beside=beside)
    if record.state == "done":
        return print(f"{options.output}: already ranked")
    encoder: list[EncoderSettings] = []
    rank = {"dense": partial(_dense, encoder=encoder), "rrf": _fused}.get(ranker, _by_host)
    lines = tqdm(rank(options, task, ranker), "rank", unit=" questions", disable=None)
    record.begin()
    count = write_rankings(record.place, lines, scores=record.beside("scores") if options.scores else "")
    record.finish(questions=count, **({"encoder": asdict(encoder[0])} if encoder else {}))
    print(f"{options.output}: {count} rankings by {ranker}{f' ({encoder[0]})' if encoder else ''}")


def choose_ranker(options: Rank, task: Task) -> str:
    """The ranker that the options name, or mean."""
    ranker = options.ranker or ("best" if options.all else "bm25")
    return task.best.of(options.split) if ranker == "best" else ranker


def host_options(options: Rank) -> RankOptions:
    """What the rankers that need no device are told: one process each, there are others beside it."""
    return RankOptions(
        use_date=options.use_date,
        variant=options.bm25_variant,
        seed=options.seed,
        workers=1,
        compatibility=options.compatibility,
    )


def _by_host(options: Rank, task: Task, ranker: str) -> Iterator[RankedLine]:
    """Streamed: a chunk of the file at a time, by as many processes as are wanted."""
    rank = partial(rank_chunk, ranker=ranker, task=task, told=host_options(options))
    seen: set[str] = set()
    for line in chain.from_iterable(map_chunks(rank, options.questions, options.work)):
        check_unique([line.question_id], seen, options.questions)
        yield line


def _fused(options: Rank, task: Task, ranker: str) -> Iterator[RankedLine]:
    questions = _read(options, task)
    rankings = {path: RankingFile(path) for path in options.rankings}
    return map(encode_ranking, fuse_rankings(questions, rankings, k=options.rrf_k))


def _dense(options: Rank, task: Task, ranker: str, *, encoder: list[EncoderSettings]) -> Iterator[RankedLine]:
    """By an encoder; its settings are added to `encoder`."""
    questions = _read(options, task)
    if options.embeddings_cache and how_many() > 1:
        raise LampError(f"--embeddings-cache is one process's, and these are {how_many()}; leave it out")
    # Here, not above: the other rankers need no device, and their processes would start one each.
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
        ranked = rank_dense(
            questions,
            task,
            documents,
            embed_query=queries,
            similarity=opened.settings.similarity,
            use_date=_choose_dates(options, opened.settings),
            compatibility=options.compatibility,
        )
        try:
            yield from map(encode_ranking, ranked)
        except LampError as error:
            raise LampError(f"{options.questions}: {error}") from error


def _describe(options: Rank, settings: EncoderSettings) -> dict[str, Any]:
    """All that vectors depend on beside the text."""
    return {"encoder": digest(options.encoder), "dtype": options.devices.dtype, **settings.of_vectors}


def _read(options: Rank, task: Task) -> list[Question]:
    return read_questions(options.questions, task=task, patches=options.compatibility.patches)


def _choose_dates(options: Rank, settings: EncoderSettings) -> bool:
    """Whether documents have dates: as the encoder was trained, or as the options say for others."""
    if settings.use_date is None:
        return options.use_date
    if options.use_date and not settings.use_date:
        raise LampError(f"{options.encoder}: was trained on documents without dates; leave --use-date out")
    return settings.use_date
