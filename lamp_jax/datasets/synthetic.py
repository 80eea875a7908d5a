"""Synthetic benchmark in LaMP's format with a known oracle: the relevant profile items, and the best retriever.

Every user has their own answer to a topic, which only their own profile reveals. There are four groups of users, each
with a different best retriever (`GROUPS`). The question alone is independent of group and answer, except for the
common opinion about its topic (`Lexicon.prior`).
"""

import contextlib
import datetime
import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from lamp_jax.data.files import Question, question_record
from lamp_jax.datasets.lexicon import DIALECTS, LEXICON, STYLES, TOPICS
from lamp_jax.errors import LampError
from lamp_jax.runs.json_files import atomic_write
from lamp_jax.tasks.catalog import Task

Split = Literal["train", "dev"]
SPLITS: tuple[Split, ...] = ("train", "dev")
SMALLEST_DEV = 200

ProfileSize = int | tuple[int, int]
"""Items of a profile: uniform from 0.5 to 1.5 times a number; or log-uniform from a smallest to a largest number, so
that there are as many profiles of 2 to 4 items as of 50 to 100.
"""

_MISLABELLED = 0.06  # of the items that would have the reference answer: real users are not consistent
_INTERESTS = 5  # topics of a user besides the question's topic
_WEEK = 7
_PROMPT_ITEMS = 4
_FIRST_DAY = datetime.date(2010, 1, 1)


class OracleEntry(NamedTuple):
    """Oracle of a question: ids of the items with its reference answer, the user's group, the best retriever."""

    items: tuple[str, ...]
    group: str
    best: str


@dataclass(frozen=True, slots=True)
class Strand:
    """Share of a profile with items of one kind.

    `share` is its fraction of the profile; `on_topic` the probability that an item is on the question's topic;
    `dialect` the item's, relative to the question's; `life` the period of the user's life (0 to 1) in which it was
    written. `answer` is the items' answer: the reference; one of this user's two frequent wrong answers (rival,
    former); this user's answer to the item's topic (by topic); any other (the last two exclude reference and rival).
    """

    share: float
    answer: Literal["reference", "rival", "former", "by topic", "any"]
    on_topic: float = 0.0
    dialect: Literal["same", "other", "either"] = "either"
    life: tuple[float, float] = (0.0, 1.0)


class Group(NamedTuple):
    """Group of users with the same best retriever. `turns` of every 20 users belong to it."""

    best: str
    turns: int
    strands: tuple[Strand, ...]


# The shares are balanced for a reader who takes the most frequent answer among 4 items (without items, the general
# opinion). Of 100 users it is right for about 25 without items, 39 with random items, 44 with recent ones, 56 with
# BM25's, and all with the best choice for each. One prompt does not identify a group: 2 or 3 equal answers among 4
# come from right items drawn at random, and from misled users' items.
GROUPS = {
    # The right items have the question's words. Their synonyms mislead a reader who knows them.
    "topical": Group(
        "bm25",
        10,
        (
            Strand(0.40, "reference", on_topic=1, dialect="same", life=(0.15, 1.0)),
            Strand(0.26, "rival", on_topic=1, dialect="other"),
            Strand(0.34, "by topic"),
        ),
    ),
    # Taste changes over time, for every topic. Items on the question's topic are mostly old.
    "drifting": Group(
        "recency",
        3,
        (
            Strand(0.40, "reference", on_topic=0.2, life=(0.6, 1.0)),
            Strand(0.20, "rival", on_topic=0.35, life=(0.4, 0.6)),
            Strand(0.20, "former", on_topic=0.35, life=(0.2, 0.4)),
            Strand(0.20, "any", on_topic=0.35, life=(0.0, 0.2)),
        ),
    ),
    # The right items use synonyms. Items that share words with the question, fillers, are on other topics.
    "hidden": Group(
        "dense",
        3,
        (
            Strand(0.40, "reference", on_topic=1, dialect="other", life=(0.0, 0.6)),
            Strand(0.34, "by topic", dialect="same"),
            Strand(0.26, "by topic", dialect="other"),
        ),
    ),
    # The reference is the general opinion, which none of the user's items expresses. (For LaMP-1's two references there
    # is no general opinion: without items the reader guesses.)
    "misled": Group("none", 4, (Strand(0.50, "rival", on_topic=0.4), Strand(0.50, "any", on_topic=0.4))),
}
_GROUP_CYCLE = [name for name, group in GROUPS.items() for _ in range(group.turns)]
_STRIDE = 7  # coprime to 20: groups alternate, and any 20 consecutive questions have each group in its share


@dataclass(frozen=True, slots=True)
class _User:
    group: Group
    topic: int  # topic of the question
    dialect: int  # dialect of the question
    answers: dict[str, int]  # the reference, and two wrong answers: rival and former
    others: tuple[int, ...]  # all answers but reference and rival
    by_topic: dict[int, int]  # the user's wrong answers to other topics


def usual_dev_questions(questions: int) -> int:
    """Default number of dev questions for a number of train questions."""
    return max(SMALLEST_DEV, questions // 10)


def generate(
    task: Task, *, questions: int, profile_size: ProfileSize, seed: int, split: Split, words: int = 0
) -> Iterator[tuple[Question, OracleEntry]]:
    """Questions with their references (`output`), each of another user, and their oracle entries, one at a time.

    Question i depends on (task, profile_size, seed, split, words, i) alone. Texts are short, or have `words` words.
    Profiles are in random order; item ids are question id + index, so they collide between questions.
    """
    smallest, largest = (profile_size, profile_size) if isinstance(profile_size, int) else profile_size
    if questions < 1 or not 1 <= smallest <= largest:
        raise LampError(f"{questions} questions with {profile_size} profile items: give at least 1 of both")
    if split not in SPLITS:
        raise LampError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    sizes = {"profile_size": profile_size, "words": words}
    return (_generate_one(task, index, seed=seed, split=split, **sizes) for index in range(questions))


def _generate_one(
    task: Task, index: int, *, profile_size: ProfileSize, seed: int, split: Split, words: int
) -> tuple[Question, OracleEntry]:
    rng = random.Random(f"{task.name} {profile_size} {seed} {split} {index}")
    name = _GROUP_CYCLE[index * _STRIDE % len(_GROUP_CYCLE)]
    user = _draw_user(task, rng, GROUPS[name])
    text, output = _ask(task, rng, user, words=words)
    split_index = SPLITS.index(split)
    key = f"{task.id_prefix}{split_index}{index}"
    profile, right = _draw_profile(task, rng, user, size=_draw_size(rng, profile_size), key=key, words=words)
    user_id = len(SPLITS) * index + split_index
    return Question(key, text, profile, user_id, output), OracleEntry(right, name, user.group.best)


def _draw_size(rng: random.Random, profile_size: ProfileSize) -> int:
    if isinstance(profile_size, int):
        return rng.randint((profile_size + 1) // 2, profile_size + profile_size // 2)
    return round(math.exp(rng.uniform(*map(math.log, profile_size))))


def _draw_user(task: Task, rng: random.Random, group: Group) -> _User:
    answers = range(_answer_count(task))
    topic, *interests = rng.sample(range(TOPICS), 1 + _INTERESTS)
    reference, rival, former = rng.sample(answers, 3)
    if group.best == "none" and not task.cites:
        reference = LEXICON.prior[topic] % len(answers)
        rival, former = rng.sample([answer for answer in answers if answer != reference], 2)
    others = tuple(answer for answer in answers if answer not in (reference, rival))
    return _User(
        group=group,
        topic=topic,
        dialect=rng.randrange(DIALECTS),
        answers={"reference": reference, "rival": rival, "former": former},
        others=others,
        by_topic={interest: rng.choice(others) for interest in interests},
    )


def _draw_profile(
    task: Task, rng: random.Random, user: _User, *, size: int, key: str, words: int
) -> tuple[tuple[dict[str, str], ...], tuple[str, ...]]:
    """Profile items in random order, and the ids of the relevant ones, which have the reference answer."""
    strands = _spread(user.group.strands, size)
    rng.shuffle(strands)
    days = _days(rng, [rng.uniform(*strand.life) for strand in strands])
    items, right = [], []
    for index, (strand, day) in enumerate(zip(strands, days, strict=True)):
        topic = user.topic if rng.random() < strand.on_topic else rng.choice(tuple(user.by_topic))
        answer = _draw_answer(rng, user, strand, topic)
        dialect = _draw_dialect(rng, user, strand)
        fields = _item_fields(task, rng, topic=topic, dialect=dialect, answer=answer, words=words)
        items.append(fields | {"id": f"{key}{index}", "date": day})
        if answer == user.answers["reference"]:
            right.append(f"{key}{index}")
    return tuple(items), tuple(right)


def _spread(strands: tuple[Strand, ...], size: int) -> list[Strand]:
    """`size` strands by their shares; at least as many of the first as a prompt has items, unless the profile is
    tiny."""
    first, *others = strands
    spread = [first] * max(round(first.share * size), min(_PROMPT_ITEMS, size // 2), 1)
    start, room = len(spread), size - len(spread)
    for share, strand in zip(itertools.accumulate(strand.share for strand in others), others, strict=True):
        end = start + round(room * share / (1 - first.share))
        spread += [strand] * (end - len(spread))
    return spread


def _days(rng: random.Random, moments: list[float]) -> list[str]:
    """Date of each moment of a life (0 to 1), in their order; all different, so that recency has no ties."""
    days = [""] * len(moments)
    for week, index in enumerate(sorted(range(len(moments)), key=moments.__getitem__)):
        days[index] = (_FIRST_DAY + datetime.timedelta(days=_WEEK * week + rng.randrange(_WEEK))).isoformat()
    return days


def _draw_answer(rng: random.Random, user: _User, strand: Strand, topic: int) -> int:
    if strand.answer == "any" or (strand.answer == "reference" and rng.random() < _MISLABELLED):
        return rng.choice(user.others)
    return user.by_topic[topic] if strand.answer == "by topic" else user.answers[strand.answer]


def _draw_dialect(rng: random.Random, user: _User, strand: Strand) -> int:
    if strand.dialect == "either":
        return rng.randrange(DIALECTS)
    return user.dialect if strand.dialect == "same" else DIALECTS - 1 - user.dialect


# An answer is, by task: one of its labels; without labels a style of writing; for citations (LaMP-1), the topic that
# the user writes about and cites.


def _answer_count(task: Task) -> int:
    return TOPICS if task.cites else len(task.labels) or STYLES


def _ask(task: Task, rng: random.Random, user: _User, *, words: int) -> tuple[str, str]:
    """Input and reference of the question."""
    reference = user.answers["reference"]
    if task.cites:
        topics = user.topic, reference, user.answers["rival"]
        title, *pair = (LEXICON.describe(rng, topic=topic, dialect=user.dialect) for topic in topics)
        label = rng.randrange(2)
        return task.template.format(title=title, ref1=pair[label], ref2=pair[1 - label]), task.labels[label]
    text = LEXICON.describe(rng, topic=user.topic, dialect=user.dialect, words=words)
    return task.input_for(text), _express(task, reference, text)


def _item_fields(
    task: Task, rng: random.Random, *, topic: int, dialect: int, answer: int, words: int
) -> dict[str, str]:
    if task.cites:
        return {field: LEXICON.describe(rng, topic=answer, dialect=dialect, words=words) for field in task.fields}
    text = LEXICON.describe(rng, topic=topic, dialect=dialect, words=words)
    return {field: LEXICON.headline(text) for field in task.fields} | {
        task.source: text,
        task.target: _express(task, answer, text),
    }


def _express(task: Task, answer: int, text: str) -> str:
    """Text of an answer: a label, or `text` (its headline) in a style."""
    if task.labels:
        return task.labels[answer]
    return " ".join((*LEXICON.styles[answer], text if task.source == task.target else LEXICON.headline(text)))


FILES = ("train_questions.json", "train_outputs.json", "dev_questions.json", "dev_outputs.json", "oracle.json")
"""Names of the files of `write_benchmark`."""


def write_benchmark(
    task: Task,
    output_dir: str | Path,
    *,
    questions: int,
    profile_size: ProfileSize,
    seed: int,
    dev_questions: int = 0,
    words: int = 0,
) -> None:
    """Writes `{train,dev}_{questions,outputs}.json` and `oracle.json` to `output_dir`, streamed and atomically.

    `oracle.json` is `{question id: {"items": [...], "group": ..., "best": ...}}` over both splits. The same arguments
    give the same bytes.
    """
    counts: dict[Split, int] = {"train": questions, "dev": dev_questions or usual_dev_questions(questions)}
    folder = Path(output_dir)
    with contextlib.ExitStack() as stack:
        oracle = _JsonWriter(stack.enter_context(atomic_write(folder / "oracle.json")), "{", "}")
        for split, count in counts.items():
            questions_file = _JsonWriter(
                stack.enter_context(atomic_write(folder / f"{split}_questions.json")), "[", "]"
            )
            file = stack.enter_context(atomic_write(folder / f"{split}_outputs.json"))
            references_file = _JsonWriter(file, f'{{"task": "{task.official_name}", "golds": [', "]}")
            sizes = {"questions": count, "profile_size": profile_size, "words": words}
            for question, known in generate(task, seed=seed, split=split, **sizes):
                questions_file.add(question_record(replace(question, output=None)))
                references_file.add({"id": question.id, "output": question.output})
                oracle.add(known._asdict(), key=question.id)
            questions_file.end()
            references_file.end()
        oracle.end()


class _JsonWriter:
    """Streaming writer of a JSON list or object, one member per line."""

    def __init__(self, file: IO[str], opening: str, closing: str):
        self._file, self._closing, self._before = file, closing, opening + "\n"

    def add(self, value: Any, *, key: str | None = None) -> None:
        name = "" if key is None else f"{json.dumps(key)}: "
        self._file.write(self._before + name + json.dumps(value))
        self._before = ",\n"

    def end(self) -> None:
        self._file.write(f"\n{self._closing}\n")
