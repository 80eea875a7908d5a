"""How the dates of profile items are read: as numbers that compare."""

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
    if not _ISO.fullmatch(text):
        # For fromisoformat any character is the T: of 1512121200000, milliseconds since 1970, it makes the year 1512,
        # and of the zone in 2009-04-06-07:00 a time of day. Of the zone -07:75 it makes -08:15.
        raise ValueError(f"no date: {text!r}")
    moment = datetime.fromisoformat(text)
    try:
        moment = moment.astimezone(UTC) if moment.tzinfo else moment
    except OverflowError:
        raise ValueError(f"no such date in UTC: {text!r}") from None
    return (*moment.timetuple()[:6], moment.microsecond)
