"""Rankings by recency, newest item first, and prompts whose second half is the newest items."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from lamp_jax.data.dates import Date, parse_date
from lamp_jax.data.files import Question
from lamp_jax.errors import LampError
from lamp_jax.retrieval.scored import Ranked, in_order
from lamp_jax.tasks.catalog import ProfileItem


def rank_recency(questions: Iterable[Question]) -> Iterator[Ranked]:
    """Rankings of all profiles, newest item first; of equal dates, the later in the profile first.

    Raises LampError, with the question's and the item's id, for a missing or invalid date.
    """
    for question in questions:
        dates = dates_of(question)
        newest_first = sorted(range(len(dates)), key=lambda place: (dates[place], place), reverse=True)
        yield in_order(question, newest_first)


def dense_and_newest(question: Question, count: int, *, halves: Literal["distinct", "doubled"]) -> list[ProfileItem]:
    """`count` items of a profile in dense order: the first half of them (rounded up), then the newest of the others.

    `halves="doubled"` is the public code's selection: count // 2 of both kinds, which may overlap. Raises LampError as
    dates_of.
    """
    profile, dates = question.profile, dates_of(question)
    if halves == "doubled":
        oldest_first = sorted(range(len(profile)), key=lambda place: dates[place])
        newest = oldest_first[-(count // 2) :][::-1]
        return [*profile[: count // 2], *(profile[place] for place in newest)]
    half = (count + 1) // 2
    newest_first = sorted(range(half, len(profile)), key=lambda place: dates[place], reverse=True)
    return [*profile[:half], *(profile[place] for place in newest_first[: count - half])]


def dates_of(question: Question) -> list[Date]:
    """Dates of all profile items. Raises LampError as rank_recency does."""
    if question.profile and not any("date" in item for item in question.profile):
        raise LampError(
            f"question {question.id!r}: no profile item has a 'date', by which recency ranks; add dates or use another "
            "ranker. LaMP's user-based split has none, its time-based split has them"
        )
    return [_date_of(item, question.id) for item in question.profile]


def _date_of(item: Mapping[str, Any], question_id: str) -> Date:
    where = f"question {question_id!r}, profile item {item['id']!r}"
    if "date" not in item:
        raise LampError(f"{where}: no 'date', though other items have one; add it or remove the item")
    try:
        return parse_date(item["date"])
    except ValueError:
        forms = "2007, 2007-05, 2007-05-31 or an ISO time stamp"
        raise LampError(f"{where}: cannot read the date {item['date']!r}; write it as {forms}") from None
