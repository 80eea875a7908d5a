"""Batched answering of lists of prompts, with one model for all users or an adapter per user."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from tqdm.auto import tqdm

from lamp_jax.artifacts.adapters import AdapterStore
from lamp_jax.distributed import stop_if_asked
from lamp_jax.inputs.batches import Example, fit_buckets, prediction_batches
from lamp_jax.models.lora import Adapters
from lamp_jax.runs.journals import Journal
from lamp_jax.sharding import own_rows, place_batch

ReadAdapters = Callable[[Sequence[str]], dict[str, np.ndarray]]
"""Function: ids of B examples -> their adapters [B, ...]; an empty id is a padding row of the batch."""
Answered = TypeVar("Answered")


def answer(
    examples: Sequence[Example],
    answerer: Callable[[Any, jax.Array, Adapters | None], Sequence[Answered]],
    params: Any,
    *,
    batch_size: int,
    max_length: int,
    journal: Journal | None = None,
    adapters: ReadAdapters | None = None,
) -> dict[str, Answered]:
    """Answers of all examples by id, in their order. Examples with an answer in the journal are not answered again.

    `answerer` is a function of parameters, prompts [B, S] and the rows' adapters, and returns B answers.
    """
    answers: dict[str, Answered] = dict(journal.entries) if journal else {}
    lengths = fit_buckets((len(example.source) for example in examples), max_length)
    rows = dict.fromkeys(lengths, batch_size)
    batches = prediction_batches(examples, rows=rows, own=own_rows)
    with tqdm(total=len(examples), desc="answers", unit="question", disable=None, leave=journal is not None) as bar:
        for positions, batch in batches:
            ids = [examples[position].id for position in positions]
            if not all(key in answers for key in ids):
                own = adapters and adapters(_own(ids, batch_size))
                found = answerer(params, place_batch(batch.source), own and place_batch(own))
                fresh = dict(zip(ids, found, strict=False))  # rows after the ids are padding
                answers |= fresh
                if journal:
                    journal.append(fresh.items())
                    stop_if_asked()
            bar.update(len(ids))
    return {example.id: answers[example.id] for example in examples}


def read_adapters(store: AdapterStore, users: dict[str, str]) -> ReadAdapters:
    """Function that reads the adapters of questions by id, for `answer`; `users` by question id."""
    return lambda ids: store.read_for([users.get(key) for key in ids])


def _own(ids: Sequence[str], rows: int) -> list[str]:
    """Ids of the rows of a batch that this process has; empty for padding rows."""
    padded = [*ids, *[""] * (rows - len(ids))]
    return [padded[row] for row in own_rows(rows)]
