"""Batches of questions' candidates with rewards, in few shapes, for a dual encoder or a selector."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import OwnRows, choose_text_buckets, find_bucket, plan_epoch


@dataclass(frozen=True)
class Candidates:
    """Query and documents of one question as token ids, and each document's reward.

    For a selector, only the texts of its candidates.
    """

    id: str
    query: np.ndarray | None
    documents: Sequence[np.ndarray]
    rewards: np.ndarray
    baseline: float = 0.0
    """Baseline that is subtracted from the rewards of sampled items."""

    @property
    def texts(self) -> list[np.ndarray]:
        """All texts that an encoder reads, the query first."""
        return [*([] if self.query is None else [self.query]), *self.documents]


class CandidateBatch(NamedTuple):
    """Batch of B questions with N candidates each; questions that only fill the batch have none."""

    tokens: np.ndarray
    """[B, 1 + N, S] int32, the query first, padded with `pad`; [B, N, S] where there are no queries."""
    rewards: np.ndarray
    """[B, N] float32."""
    mask: np.ndarray
    """[B, N] bool, True at candidates that exist."""
    baseline: np.ndarray
    """[B] float32."""


class CandidateBatches:
    """Batches of every question once per epoch, in an order drawn from (seed, epoch); `batches[step]`, step >= 0.

    Questions are batched by number of candidates (rounded up to a power of two) and longest text (rounded up to one of
    a few lengths), so a question with three short items costs as much as four short items. See `plan_epoch`.
    """

    def __init__(
        self,
        examples: Sequence[Candidates],
        *,
        batch_size: int,
        max_length: int,
        pad: int,
        seed: int,
        own: OwnRows = np.arange,
    ):
        if not examples:
            raise LampError("there are no questions with candidates to train on; give at least one")
        self.examples, self.batch_size, self.pad, self.seed = examples, batch_size, pad, seed
        self._own = own(batch_size)
        lengths = choose_text_buckets(max_length)
        most = max(len(example.documents) for example in examples)
        counts = (*(2**power for power in range(1, most.bit_length()) if 2**power < most), most)
        self._sizes = np.array(
            [
                (
                    find_bucket(len(example.documents), counts),
                    find_bucket(max(map(len, example.texts)), lengths),
                )
                for example in examples
            ]
        )
        self._plan = lru_cache(maxsize=2)(
            lambda epoch: plan_epoch(self._sizes, batch_size=batch_size, seed=seed, epoch=epoch)
        )

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return -(-len(self.examples) // self.batch_size)

    def size(self, step: int) -> tuple[int, ...]:
        """Number of candidates and length of the texts of a batch."""
        epoch, place = divmod(step, len(self))
        return self._plan(epoch)[place][0]

    def __getitem__(self, step: int) -> CandidateBatch:
        epoch, place = divmod(step, len(self))
        (count, length), rows = self._plan(epoch)[place]
        queries = len(self.examples[0].texts) - len(self.examples[0].documents)
        size = len(self._own)
        tokens = np.full((size, queries + count, length), self.pad, np.int32)
        rewards = np.zeros((size, count), np.float32)
        mask = np.zeros((size, count), bool)
        baseline = np.zeros(size, np.float32)
        for place, row in enumerate(rows[self._own[self._own < len(rows)]]):
            example = self.examples[row]
            for column, text in enumerate(example.texts):
                tokens[place, column, : len(text)] = text
            rewards[place, : len(example.rewards)] = example.rewards
            mask[place, : len(example.rewards)] = True
            baseline[place] = example.baseline
        return CandidateBatch(tokens, rewards, mask, baseline)
