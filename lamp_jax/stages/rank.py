"""`lamp rank`: every question's whole profile, best item first."""

from tqdm import tqdm

from lamp_jax.config import Rank
from lamp_jax.data.files import read_questions
from lamp_jax.data.records import claim
from lamp_jax.errors import LampError
from lamp_jax.retrieval.bm25 import available_cores
from lamp_jax.retrieval.ranking import RANKERS, RankOptions, write_rankings
from lamp_jax.tasks.catalog import find_task


def run(options: Rank) -> None:
    task = find_task(options.task)
    record = claim(options.output, options, inputs=[options.questions], ignore=["workers"])
    if record.state == "done":
        return print(f"{options.output}: already ranked")
    questions = read_questions(options.questions, task=task)
    told = RankOptions(
        use_date=options.use_date,
        variant=options.bm25_variant,
        seed=options.seed,
        workers=options.workers or available_cores(),
        compatibility=options.compatibility,
    )
    try:
        rankings = RANKERS[options.ranker](questions, task, told)
        count = write_rankings(options.output, tqdm(rankings, "rank", len(questions), disable=None))
    except LampError as error:
        raise LampError(f"{options.questions}: {error}") from error
    record.finish(questions=count)
    print(f"{options.output}: {count} rankings by {options.ranker}")
