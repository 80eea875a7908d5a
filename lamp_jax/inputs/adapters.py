"""Training pairs from users' own histories: one pair for each profile item.

Source: arXiv 2409.09510, where every user has their own adapter, and its public code (REFERENCE A.6, B46, B47).
"""

import random
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lamp_jax.config import CORRECT, Compatibility, Profiles
from lamp_jax.data.files import Question, check_items
from lamp_jax.errors import LampError
from lamp_jax.tasks.catalog import ProfileItem, Task


class Pair(NamedTuple):
    """Text pair of an input and its answer. The id has the user, the question and the item's place in its profile."""

    id: str
    source: str
    target: str


@dataclass(frozen=True)
class User:
    """User and the training pairs of the user's history, in its order; empty where the history is empty."""

    id: str
    pairs: tuple[Pair, ...]


class _Entry(NamedTuple):
    """Item of a user's history: the profile item at `place` of a question."""

    question: Question
    place: int

    @property
    def item(self) -> ProfileItem:
        return self.question.profile[self.place]


def read_users(
    questions: Iterable[Question],
    task: Task,
    *,
    profiles: Profiles,
    seed: int,
    path: str,
    compatibility: Compatibility = CORRECT,
    reserved: Collection[str] = (),
) -> list[User]:
    """All users, in the order of their first questions, each with one pair for every item of the history.

    `seed` determines the share of an item that the input contains where the task's practice includes its start. A
    user's pairs do not depend on other users. Raises LampError, with `path`, for an item without a field that the task
    needs, for a user with different profiles where `profiles` is `single`, and for a user whose id is `reserved` for
    the shared adapter.
    """
    asked: dict[str, list[Question]] = {}
    for question in questions:
        check_items(question, task, path)
        if question.user in reserved:
            raise LampError(
                f"{path}, user {question.user!r} (question {question.id!r}): this id is reserved for the "
                "adapter of all users without their own; give the user another id"
            )
        asked.setdefault(question.user, []).append(question)
    return [
        User(user, tuple(_pair(entry, task, seed, compatibility) for entry in _history(own, profiles, path)))
        for user, own in asked.items()
    ]


def _history(own: Sequence[Question], profiles: Profiles, path: str) -> list[_Entry]:
    """History of one user from the profiles of the user's questions."""
    if profiles == "single":
        _check_single(own, path)
    chosen = own if profiles == "union" else own[:1]
    entries = [_Entry(question, place) for question in chosen for place in range(len(question.profile))]
    if profiles != "union":
        return entries
    first: dict[Hashable, _Entry] = {}
    for entry in entries:
        first.setdefault(_content(entry.item), entry)
    return list(first.values())


def _check_single(own: Sequence[Question], path: str) -> None:
    """LampError where a user's profiles have different items; their order, which rankings change, may differ."""
    if len(own) == 1:
        return
    contents = Counter(map(_content, own[0].profile))
    for other in own[1:]:
        if Counter(map(_content, other.profile)) != contents:
            raise LampError(
                f"{path}, user {own[0].user!r}: the profiles of the questions {own[0].id!r} and {other.id!r} differ; "
                "`--profiles first` takes the first question's, as the public code does, `--profiles union` all of them"
            )


def _content(item: ProfileItem) -> Hashable:
    """Content of an item without its id: the questions of a user contain the same item under several ids."""
    return frozenset((name, repr(value)) for name, value in item.items() if name != "id")


def _pair(entry: _Entry, task: Task, seed: int, compatibility: Compatibility) -> Pair:
    user, item = entry.question.user, entry.item
    start, target = "", str(item[task.target])
    if task.practice is not None and task.practice.given is not None:
        share = random.Random(f"{seed} {user} {item['id']}").uniform(*task.practice.given)
        start, target = _cut(target, share, compatibility)
    return Pair(f"{user}-{entry.question.id}-{entry.place}", task.practice_for(item, start), target)


def _cut(text: str, share: float, compatibility: Compatibility) -> tuple[str, str]:
    """First words of a text, about this share of them, and the rest; both joined by single spaces."""
    words = text.split()
    given = int(share * len(words))
    if given == 0 and len(words) > 1 and compatibility.tweet_start == "some":
        given = 1
    return " ".join(words[:given]), " ".join(words[given:])
