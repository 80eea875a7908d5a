"""Training examples of a retriever from questions with feedback: texts with rewards, and their token ids."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from lamp_jax.artifacts.feedback import MetricValues, first_pairs, read_feedback
from lamp_jax.config import Compatibility, Work
from lamp_jax.data.chunks import stream_first_items
from lamp_jax.data.files import Question
from lamp_jax.errors import LampError
from lamp_jax.inputs.candidate_batches import Candidates
from lamp_jax.inputs.generator import reference_of
from lamp_jax.inputs.reader import TextReader
from lamp_jax.retrieval.sampling import permutation
from lamp_jax.retrieval.texts import documents_of, query_of
from lamp_jax.settings import Ropg
from lamp_jax.tasks.catalog import Task
from lamp_jax.tasks.rewards import reward_of, worst_error


@dataclass(frozen=True)
class ScoredQuestion:
    """Texts of a question as a retriever reads them, and the reward of each document."""

    id: str
    query: str
    documents: tuple[str, ...]
    rewards: np.ndarray
    reference: str


def read_scored_questions(
    ropg: Ropg, task: Task, path: str, feedback: Sequence[str], *, compatibility: Compatibility
) -> list[ScoredQuestion]:
    """Questions of a file with the rewards of their first items. LampError for missing or non-numeric feedback."""
    questions = list(stream_first_items(path, ropg.profile_size, task=task, work=Work()))
    metrics = read_feedback(feedback, task, questions, profile_size=ropg.profile_size)
    return score_questions(ropg, task, questions, metrics, path=path, compatibility=compatibility)


def score_questions(
    ropg: Ropg,
    task: Task,
    questions: Iterable[Question],
    metrics: Mapping[str, Sequence[MetricValues]],
    *,
    path: str,
    compatibility: Compatibility,
) -> list[ScoredQuestion]:
    """Questions with the rewards of their first items; `metrics` has those of each question by its id.

    Questions without items are left out. LampError, with `path`, for missing fields and invalid numbers.
    """
    score = partial(_score, ropg, task, path, compatibility)
    return [score(question, metrics[question.id]) for question in questions if question.profile]


def _score(
    ropg: Ropg, task: Task, path: str, compatibility: Compatibility, question: Question, metrics: Sequence[MetricValues]
) -> ScoredQuestion:
    reference = reference_of(question, path)
    try:
        rewards = [reward_of(task, one, reference, kind=ropg.reward) for one in metrics]
        documents = documents_of(question, task, use_date=ropg.use_date)
        query = query_of(question, task, compatibility=compatibility)
    except LampError as error:
        remedy = "; train without dates: --no-use-date" if "'date'" in str(error) else ""
        raise LampError(f"{path}, question {question.id!r}: {error}{remedy}") from error
    first = tuple(documents[pair.rank] for pair in first_pairs([question], ropg.profile_size))
    return ScoredQuestion(question.id, query, first, np.array(rewards, np.float32), reference)


def hold_out(
    scored: Sequence[ScoredQuestion], share: float, *, seed: int
) -> tuple[list[ScoredQuestion], list[ScoredQuestion]]:
    """Training and held-out questions; the latter are a share of all, drawn from the seed."""
    count = round(share * len(scored))
    if not 0 < count < len(scored):
        raise LampError(
            f"--held-out {share} of {len(scored)} questions leaves none for training or for validation; "
            "give --validation"
        )
    order = permutation(len(scored), seed=seed, key="held out")
    held = set(order[:count])
    return [one for place, one in enumerate(scored) if place not in held], [scored[place] for place in sorted(held)]


def distinct_texts(scored: Iterable[ScoredQuestion]) -> list[str]:
    """Distinct queries and documents."""
    return list(dict.fromkeys(text for one in scored for text in (one.query, *one.documents)))


def distinct_queries(scored: Iterable[ScoredQuestion]) -> list[str]:
    return list(dict.fromkeys(one.query for one in scored))


def distinct_documents(scored: Iterable[ScoredQuestion]) -> list[str]:
    return list(dict.fromkeys(text for one in scored for text in one.documents))


def make_candidates(
    ropg: Ropg,
    task: Task,
    scored: Sequence[ScoredQuestion],
    reader: TextReader,
    baselines: Sequence[float],
    *,
    compatibility: Compatibility,
) -> list[Candidates]:
    """Candidates of the questions as token ids, each with its baseline.

    With `ropg="padded"` every question has `profile_size` documents, as in the public code: empty documents are added,
    with the baseline as their reward, plus the worst error for LaMP-3.
    """
    queries = _by_text(distinct_queries(scored), reader.queries)
    tokens = _by_text([*distinct_documents(scored), ""], reader.documents)
    examples = []
    for one, baseline in zip(scored, baselines, strict=True):
        documents, rewards = [tokens[text] for text in one.documents], one.rewards
        if compatibility.ropg == "padded":
            missing = ropg.profile_size - len(documents)
            worth = baseline + (worst_error(one.reference) if task.metric == "mae" else 0.0)
            documents = documents + [tokens[""]] * missing
            rewards = np.concatenate([rewards, np.full(missing, worth, np.float32)])
        examples.append(Candidates(one.id, queries[one.query], documents, rewards, baseline))
    return examples


def _by_text(texts: Sequence[str], read: Callable[[Sequence[str]], list[list[int]]]) -> dict[str, np.ndarray]:
    return {text: np.array(row, np.int32) for text, row in zip(texts, read(texts), strict=True)}
