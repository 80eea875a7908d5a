"""Answers to lists of prompts, batch by batch, with one model for all or every user's own adapter."""

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
"""The adapters [B, ...] of the examples of B ids; an empty id stands for a row that only fills a batch."""
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
    """The answer to every example, by id, in their order. With a journal, what it holds is not answered again.

    `answerer` takes parameters, prompts [B, S] and the rows' adapters to B answers.
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
                fresh = dict(zip(ids, found, strict=False))  # rows beyond the ids only fill the batch
                answers |= fresh
                if journal:
                    journal.append(fresh.items())
                    stop_if_asked()
            bar.update(len(ids))
    return {example.id: answers[example.id] for example in examples}


def read_adapters(store: AdapterStore, users: dict[str, str]) -> ReadAdapters:
    """What reads the adapters of questions by their ids, as `answer` asks for them; `users` by question id."""
    return lambda ids: store.read_for([users.get(key) for key in ids])


def _own(ids: Sequence[str], rows: int) -> list[str]:
    """Of a batch's ids those of the rows that this process makes."""
    padded = [*ids, *[""] * (rows - len(ids))]
    return [padded[row] for row in own_rows(rows)]
