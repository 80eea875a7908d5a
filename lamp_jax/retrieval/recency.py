"""How recency ranks a profile: the newest item first."""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from lamp_jax.data.files import Question
from lamp_jax.errors import LampError
from lamp_jax.retrieval.scored import Ranked, in_order

Date = tuple[int, ...]

_DATE = re.compile(r"(\d{1,4})(?:-(\d{1,2}))?(?:-(\d{1,2}))?")


def rank_recency(questions: Iterable[Question]) -> Iterator[Ranked]:
    """Every profile with the newest item first; of equal dates, the later in the profile first.

    Raises LampError, with the question's and the item's id, for a date that is missing or cannot be read.
    """
    for question in questions:
        dates = dates_of(question)
        newest_first = sorted(range(len(dates)), key=lambda place: (dates[place], place), reverse=True)
        yield in_order(question, newest_first)


def parse_date(value: object) -> Date:
    """A date as numbers that compare: year, month, day, as far as they are known, and the time of day in UTC.

    Reads 2007, "2007", "2007-05", "2007-05-31" (zeros for an unknown month or day too) and ISO time stamps (UTC where
    they name no zone). A less precise date counts as the earlier: 2007 < 2007-05. Raises ValueError for anything else.
    """
    text = str(value).strip()
    date = _DATE.fullmatch(text)
    if date:
        numbers = tuple(int(number) for number in date.groups() if number is not None)
        if any(number > most for number, most in zip(numbers[1:], (12, 31), strict=False)):
            raise ValueError(f"no such date: {text!r}")
        return numbers
    moment = datetime.fromisoformat(text)
    try:
        moment = moment.astimezone(UTC) if moment.tzinfo else moment
    except OverflowError:
        raise ValueError(f"no such date in UTC: {text!r}") from None
    return (*moment.timetuple()[:6], moment.microsecond)


def dates_of(question: Question) -> list[Date]:
    """The date of every profile item. Raises LampError as rank_recency does."""
    if question.profile and not any("date" in item for item in question.profile):
        raise LampError(
            f"question {question.id!r}: no profile item has a 'date'; files of the user-based split have none, "
            "use the time-based split or another ranker"
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
