"""`lamp merge`: one file of questions with profiles in a ranking's order, and with references."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from itertools import chain
from typing import NamedTuple
from uuid import uuid4

from tqdm.auto import tqdm

from lamp_jax.data.chunks import Chunk, map_chunks, questions_of
from lamp_jax.data.files import check_same_ids, check_unique, question_record, read_outputs
from lamp_jax.errors import LampError
from lamp_jax.options.retrieval import Merge
from lamp_jax.retrieval.ranking import apply_ranking, open_ranking
from lamp_jax.runs.json_files import encode, write_json_list
from lamp_jax.runs.records import guard_outputs, reserve

# Every process reads the references once in a run, as open_ranking.
_references = lru_cache(maxsize=1)(lambda path, run_id: read_outputs(path).by_id)


class _Merged(NamedTuple):
    question_id: str
    record: bytes


@guard_outputs
def run(options: Merge) -> None:
    inputs = [name for name in (options.questions, options.outputs, options.ranking) if name]
    record = reserve(options.output, options, inputs=inputs, ignore=["work"])
    if record.state == "done":
        return print(f"{options.output}: already merged")
    run_id = uuid4().hex
    chunks = map_chunks(partial(merge_chunk, options=options, run_id=run_id), options.questions, options.work)
    complete = _check_complete(chain.from_iterable(chunks), options, run_id)
    merged = tqdm(complete, "merge", unit=" questions", disable=None)
    record.begin()
    count = write_json_list(record.target, merged)
    record.finish(questions=count)
    print(f"{options.output}: {count} questions")


def merge_chunk(chunk: Chunk, *, options: Merge, run_id: str) -> list[_Merged]:
    """Merged questions of a chunk as JSON; b"" for a question that is not in the references or in the ranking.

    `run_id` names the run of the command: the files do not change during it.
    """
    references = _references(options.outputs, run_id) if options.outputs else None
    ranking = open_ranking(options.ranking, run_id) if options.ranking else None
    merged = []
    for question in questions_of(chunk, patches=options.compatibility.patches):
        if any(known is not None and question.id not in known for known in (references, ranking)):
            merged.append(_Merged(question.id, b""))
            continue
        order = None if ranking is None else ranking[question.id]
        try:
            question = question if order is None else apply_ranking(question, order)
        except LampError as error:
            raise LampError(f"{options.ranking}, {error}") from None
        question = question if references is None else replace(question, output=references[question.id])
        merged.append(_Merged(question.id, encode(question_record(question))))
    return merged


def _check_complete(merged: Iterator[_Merged], options: Merge, run_id: str) -> Iterator[bytes]:
    """Merged questions as JSON. LampError at the end, before the file is in place, for differing question ids."""
    seen: set[str] = set()
    for question_id, record in merged:
        check_unique([question_id], seen, options.questions)
        yield record
    _check_ids(seen, options, run_id)


def _check_ids(ids: set[str], options: Merge, run_id: str) -> None:
    others: dict[str, Mapping] = {}
    if options.outputs:
        others[options.outputs] = _references(options.outputs, run_id)
    if options.ranking:
        others[options.ranking] = open_ranking(options.ranking, run_id)
    for name, known in others.items():
        check_same_ids(ids, known, left=options.questions, right=name)
