"""Parsing of the dates of profile items into comparable numbers."""

import re
from datetime import UTC, datetime

Date = tuple[int, ...]

_DATE = re.compile(r"(\d{1,4})(?:-(\d{1,2}))?(?:-(\d{1,2}))?")
_ISO = re.compile(
    r"\d{4}(?:-?\d{2}-?\d{2}|-?W\d{2}(?:-?\d)?)"
    r"(?:[T ]\d{2}(?::?\d{2}(?::?\d{2}(?:[.,]\d+)?)?)?(?:Z|[+-]\d{2}(?::?[0-5]\d(?::?[0-5]\d(?:\.\d+)?)?)?)?)?",
    re.IGNORECASE,
)


def parse_date(value: object) -> Date:
    """Comparable numbers of a date: year, month and day, as far as known, and the time of day in UTC.

    Reads 2007, "2007", "2007-05", "2007-05-31" (also zeros for an unknown month or day) and ISO time stamps (UTC unless
    they name a zone). A less precise date is the earlier: 2007 < 2007-05. Raises ValueError for anything else.
    """
    text = str(value).strip()
    date = _DATE.fullmatch(text)
    if date:
        numbers = tuple(int(number) for number in date.groups() if number is not None)
        if any(number > most for number, most in zip(numbers[1:], (12, 31), strict=False)):
            raise ValueError(f"no such date: {text!r}")
        return numbers
    if not _ISO.fullmatch(text):
        # fromisoformat takes any character for the T: it reads 1512121200000, milliseconds since 1970, as the year
        # 1512, the zone in 2009-04-06-07:00 as a time of day, and the zone -07:75 as -08:15.
        raise ValueError(f"not a date: {text!r}")
    moment = datetime.fromisoformat(text)
    try:
        moment = moment.astimezone(UTC) if moment.tzinfo else moment
    except OverflowError:
        raise ValueError(f"no such date in UTC: {text!r}") from None
    return (*moment.timetuple()[:6], moment.microsecond)
