"""Questions with their candidates and what each is worth, as batches of few shapes: for a dual encoder, a selector."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from lamp_jax.artifacts.feedback import Metrics, first_pairs, read_feedback
from lamp_jax.config import Compatibility, Ropg
from lamp_jax.data.files import Question, read_questions
from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import OwnRows, choose_text_buckets, find_bucket, plan_epoch
from lamp_jax.inputs.examples import gold_of
from lamp_jax.inputs.reader import TextReader
from lamp_jax.retrieval.sampling import permutation
from lamp_jax.retrieval.texts import documents_of, query_of
from lamp_jax.tasks.catalog import Task
from lamp_jax.tasks.rewards import reward_of, worst_error


@dataclass(frozen=True)
class ScoredQuestion:
    """A question's texts as a retriever reads them, and the reward of each document."""

    id: str
    query: str
    documents: tuple[str, ...]
    rewards: np.ndarray
    gold: str


def read_scored_questions(
    ropg: Ropg, task: Task, path: str, feedback: Sequence[str], *, compatibility: Compatibility
) -> list[ScoredQuestion]:
    """The questions of a file with the rewards of their first items. LampError for what is missing or no number."""
    questions = read_questions(path, task=task)
    metrics = read_feedback(feedback, task, questions, profile_size=ropg.profile_size)
    score = partial(_score, ropg, task, path, compatibility)
    return [score(question, metrics[question.id]) for question in questions if question.profile]


def _score(
    ropg: Ropg, task: Task, path: str, compatibility: Compatibility, question: Question, metrics: Sequence[Metrics]
) -> ScoredQuestion:
    gold = gold_of(question, path)
    try:
        rewards = [reward_of(task, one, gold, kind=ropg.reward) for one in metrics]
        documents = documents_of(question, task, use_date=ropg.use_date)
        query = query_of(question, task, compatibility=compatibility)
    except LampError as error:
        remedy = "; train without dates: --no-use-date" if "'date'" in str(error) else ""
        raise LampError(f"{path}, question {question.id!r}: {error}{remedy}") from error
    first = tuple(documents[pair.rank] for pair in first_pairs([question], ropg.profile_size))
    return ScoredQuestion(question.id, query, first, np.array(rewards, np.float32), gold)


def hold_out(
    scored: Sequence[ScoredQuestion], share: float, *, seed: int
) -> tuple[list[ScoredQuestion], list[ScoredQuestion]]:
    """The questions without a share of them, and these; which, is drawn from the seed."""
    count = round(share * len(scored))
    if not 0 < count < len(scored):
        raise LampError(f"--held-out {share} of {len(scored)} questions leaves none on one side; give --validation")
    order = permutation(len(scored), seed=seed, key="held out")
    held = set(order[:count])
    return [one for place, one in enumerate(scored) if place not in held], [scored[place] for place in sorted(held)]


def distinct_texts(scored: Iterable[ScoredQuestion]) -> list[str]:
    """Every query and document once."""
    return list(dict.fromkeys(text for one in scored for text in (one.query, *one.documents)))


def distinct_queries(scored: Iterable[ScoredQuestion]) -> list[str]:
    return list(dict.fromkeys(one.query for one in scored))


def distinct_documents(scored: Iterable[ScoredQuestion]) -> list[str]:
    return list(dict.fromkeys(text for one in scored for text in one.documents))


@dataclass(frozen=True)
class Candidates:
    """One question: its query and documents as token ids, and each document's reward.

    Or, for a selector, the texts of its candidates alone.
    """

    id: str
    query: np.ndarray | None
    documents: Sequence[np.ndarray]
    rewards: np.ndarray
    baseline: float = 0.0
    """The reward that sampled items are measured against."""

    @property
    def texts(self) -> list[np.ndarray]:
        """All that an encoder reads, the query first."""
        return [*([] if self.query is None else [self.query]), *self.documents]


def make_candidates(
    ropg: Ropg,
    task: Task,
    scored: Sequence[ScoredQuestion],
    reader: TextReader,
    baselines: Sequence[float],
    *,
    compatibility: Compatibility,
) -> list[Candidates]:
    """The questions as token ids, each with its baseline.

    With `ropg="padded"` every question has `profile_size` documents, as in the public code: empty ones are added, worth
    as much as the baseline, and for LaMP-3 more than that by the worst error.
    """
    queries = _by_text(distinct_queries(scored), reader.queries)
    tokens = _by_text([*distinct_documents(scored), ""], reader.documents)
    examples = []
    for one, baseline in zip(scored, baselines, strict=True):
        documents, rewards = [tokens[text] for text in one.documents], one.rewards
        if compatibility.ropg == "padded":
            missing = ropg.profile_size - len(documents)
            worth = baseline + (worst_error(one.gold) if task.metric == "mae" else 0.0)
            documents = documents + [tokens[""]] * missing
            rewards = np.concatenate([rewards, np.full(missing, worth, np.float32)])
        examples.append(Candidates(one.id, queries[one.query], documents, rewards, baseline))
    return examples


def _by_text(texts: Sequence[str], read: Callable[[Sequence[str]], list[list[int]]]) -> dict[str, np.ndarray]:
    return {text: np.array(row, np.int32) for text, row in zip(texts, read(texts), strict=True)}


class CandidateBatch(NamedTuple):
    """B questions with N candidates each; questions that only fill the batch have none."""

    tokens: np.ndarray
    """[B, 1 + N, S] int32, the query first, padded with `pad`; [B, N, S] where there are no queries."""
    rewards: np.ndarray
    """[B, N] float32."""
    mask: np.ndarray
    """[B, N] bool, True at candidates that exist."""
    baseline: np.ndarray
    """[B] float32."""


class CandidateBatches:
    """Every question once an epoch, in an order drawn from (seed, epoch); `batches[step]` for any step from 0.

    Questions are batched by number of candidates (to the next power of two) and longest text (to the next of a few
    lengths), so that a question with three short items costs four short ones. See `plan_epoch`.
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
            raise LampError("no questions to learn from")
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
        """Number of batches of one epoch."""
        return -(-len(self.examples) // self.batch_size)

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
