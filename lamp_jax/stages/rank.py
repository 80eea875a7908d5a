"""`lamp rank`: every question's whole profile, best item first."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from tqdm import tqdm

from lamp_jax.config import Rank
from lamp_jax.data.files import Question, read_questions
from lamp_jax.data.records import claim, digest
from lamp_jax.errors import LampError
from lamp_jax.retrieval.bm25 import available_cores
from lamp_jax.retrieval.dense import EmbeddingCache, rank_dense, read_settings
from lamp_jax.retrieval.fusion import fuse_rankings
from lamp_jax.retrieval.ranking import RANKERS, RankOptions, read_rankings, write_rankings
from lamp_jax.retrieval.scored import Ranked
from lamp_jax.tasks.catalog import Task, find_task

Ranker = Callable[[Sequence[Question], Task], Iterator[Ranked]]


def run(options: Rank) -> None:
    task = find_task(options.task)
    inputs = [options.questions, *options.rankings] + [options.encoder] * (options.ranker == "dense")
    record = claim(options.output, options, inputs=inputs, ignore=["workers", "embeddings_cache", "batch_tokens"])
    if record.state == "done":
        return print(f"{options.output}: already ranked")
    questions = read_questions(options.questions, task=task)
    openers = {"dense": _dense, "rrf": _fused}
    with openers.get(options.ranker, _by_host)(options) as rank:
        try:
            rankings = rank(questions, task)
            ranked = tqdm(rankings, "rank", len(questions), disable=None)
            count = write_rankings(options.output, ranked, scores=options.scores)
        except LampError as error:
            raise LampError(f"{options.questions}: {error}") from error
    record.finish(questions=count)
    print(f"{options.output}: {count} rankings by {options.ranker}")


def _by_host(options: Rank) -> AbstractContextManager[Ranker]:
    told = RankOptions(
        use_date=options.use_date,
        variant=options.bm25_variant,
        seed=options.seed,
        workers=options.workers or available_cores(),
        compatibility=options.compatibility,
    )
    return nullcontext(lambda questions, task: RANKERS[options.ranker](questions, task, told))


def _fused(options: Rank) -> AbstractContextManager[Ranker]:
    rankings = {path: read_rankings(path) for path in options.rankings}
    return nullcontext(lambda questions, task: fuse_rankings(questions, rankings, k=options.rrf_k))


@contextmanager
def _dense(options: Rank) -> Iterator[Ranker]:
    # Here, not above: the other rankers need no device, and BM25's processes would start one each.
    import jax

    from lamp_jax.encoding import open_encoder
    from lamp_jax.sharding import open_mesh

    use_date = _choose_dates(options)
    with jax.set_mesh(open_mesh(options.devices)):
        embed = open_encoder(
            options.encoder, options.devices, max_length=options.max_length, batch_tokens=options.batch_tokens
        )
        if options.embeddings_cache:
            encoder = {"encoder": digest(options.encoder), "max_length": options.max_length}
            embed = EmbeddingCache(options.embeddings_cache, encoder | {"dtype": options.devices.dtype}).wrap(embed)
        yield lambda questions, task: rank_dense(
            questions, task, embed, use_date=use_date, compatibility=options.compatibility
        )


def _choose_dates(options: Rank) -> bool:
    """Whether documents have dates: as the encoder was trained, or as the options say for others."""
    settings = read_settings(options.encoder)
    if settings is None:
        return options.use_date
    if options.use_date and not settings.use_date:
        raise LampError(f"{options.encoder}: was trained on documents without dates; leave --use-date out")
    return settings.use_date
