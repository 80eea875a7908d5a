"""Dates as tables have them: written with the month's name, and as time since 1970."""

import re
from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_tz

from lamp_jax.errors import LampError

_MONTH = r"(?P<month>(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*)\.?"
_WEEKDAY = r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*,?\s+)?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>\d{4})"
_TIME = r"(?P<time>\d{1,2}:\d{2}(?::\d{2})?)"
# The names of zones that RFC 2822 knows, which email.utils reads; others name several zones, or none.
_ZONE = r"(?P<zone>[+-]\d{2}:?\d{2}|UT|UTC|GMT|Z|[ECMP][SD]T)"
_WRITTEN = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_WEEKDAY}{_MONTH}\s+{_DAY}\s+{_TIME}\s+(?:{_ZONE}\s+)?{_YEAR}",  # Mon Apr 06 22:19:45 PDT 2009
        rf"{_WEEKDAY}{_DAY}[\s-]+{_MONTH},?[\s-]+{_YEAR}(?:\s+{_TIME}(?:\s*{_ZONE})?(?:\s+\([^()]*\))?)?",  # RFC 2822
        rf"{_WEEKDAY}{_MONTH}\s+{_DAY},?\s+{_YEAR}(?:,?\s+{_TIME}(?:\s*{_ZONE})?)?",  # January 2, 2006
    )
]
# An ISO time stamp with what datetime.fromisoformat does not know: slashes, a space before the zone, or its name.
_NEARLY_ISO = re.compile(
    rf"{_YEAR}[-/](?P<month>\d{{1,2}})[-/]{_DAY}(?:[T\s]+(?P<time>\d{{1,2}}:\d{{2}}(?::\d{{2}}(?:[.,]\d+)?)?)\s*(?:{_ZONE})?)?",
    re.IGNORECASE,
)
_EXCHANGEABLE = re.compile(r"(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d{2})(?:\D.*)?")
_HAS_ZONE = re.compile(rf"\s{_ZONE}$", re.IGNORECASE)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_NUMBER = re.compile(r"(\d{10}|\d{13}|\d{16}|\d{19})(?:\.\d+)?")


def parse_written_date(text: str) -> datetime:
    """The moment that a date with its month's name, an ISO time stamp with a zone's name, or a time since 1970 is.

    Without a zone it has none, without a time it is midnight. ValueError for anything else: a zone whose name is
    ambiguous, and a number of digits that is none of a time since 1970 from 2001 to 2286 in s, ms, us or ns. LampError
    for 01/02/2003, which is read in two ways.
    """
    text = text.strip()
    if found := _EPOCH_NUMBER.fullmatch(text):
        digits = found[1]
        scale = 10 ** (len(digits) - 10)
        return _EPOCH + timedelta(seconds=int(digits) // scale, microseconds=int(digits) % scale * 10**6 // scale)
    for pattern in _WRITTEN:
        if found := pattern.fullmatch(text):
            date = f"{found['day']} {found['month'][:3]} {found['year']} {found['time'] or '00:00'}"
            return _read(f"{date} {found['zone'] or ''}".rstrip())
    if found := _NEARLY_ISO.fullmatch(text):
        date = f"{found['year']}-{int(found['month']):02}-{int(found['day']):02}"
        moment = datetime.fromisoformat(f"{date}T{found['time']:0>5}" if found["time"] else date)
        zone = _read(f"1 Jan 2000 00:00 {found['zone']}").tzinfo if found["zone"] else None
        return moment.replace(tzinfo=zone)
    if _EXCHANGEABLE.fullmatch(text):
        raise LampError(
            f"the date {text!r}: its day and month may be exchanged; say which is which with --date-format, such as "
            "%d/%m/%Y, %m/%d/%Y or %m/%d/%Y %I:%M:%S %p"
        )
    raise ValueError(f"no date: {text!r}")


def _read(text: str) -> datetime:
    """A date of RFC 2822, with a zone or without."""
    found = parsedate_tz(re.sub(r"\bZ$", "UTC", text.strip(), flags=re.IGNORECASE))
    if found is None:
        raise ValueError(f"no date: {text!r}")
    moment = datetime(*found[:6])
    # For email.utils, no zone is UTC.
    return moment.replace(tzinfo=timezone(timedelta(seconds=found[9] or 0))) if _HAS_ZONE.search(text) else moment
