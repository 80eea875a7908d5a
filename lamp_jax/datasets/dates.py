"""Parsing of the dates of tables, in all accepted formats, into sort keys and dates of items."""

import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

from lamp_jax.data.dates import parse_date
from lamp_jax.datasets.tables import UnusableValue
from lamp_jax.errors import LampError

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
# The names of zones in RFC 2822; others are ambiguous or unknown.
_NAMED_ZONES = {"UT": 0, "UTC": 0, "GMT": 0, "Z": 0}
_NAMED_ZONES |= {"EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7}
_MONTH = rf"(?P<month>(?:{'|'.join(_MONTHS)})[a-z]*)\.?"
_WEEKDAY = r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*,?\s+)?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>\d{4})"
_TIME = r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d+))?)?"
_ZONE = rf"(?P<zone>[+-]\d{{2}}(?::?\d{{2}})?|{'|'.join(_NAMED_ZONES)})"
_FORMS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_WEEKDAY}{_MONTH}\s+{_DAY}\s+{_TIME}\s+(?:{_ZONE}\s+)?{_YEAR}",  # Mon Apr 06 22:19:45 PDT 2009
        rf"{_WEEKDAY}{_DAY}[\s-]+{_MONTH},?[\s-]+{_YEAR}(?:\s+{_TIME}(?:\s*{_ZONE}(?:\s+\([^()]*\))?)?)?",  # RFC 2822
        rf"{_WEEKDAY}{_MONTH}\s+{_DAY},?\s+{_YEAR}(?:,?\s+{_TIME}(?:\s*{_ZONE})?)?",  # January 2, 2006
        # An ISO time stamp in a variant that datetime.fromisoformat does not accept: slashes, one-digit days, months
        # and hours, a space before the zone, or a zone's name.
        rf"{_YEAR}[-/](?P<month>\d{{1,2}})[-/]{_DAY}(?:[T\s]+{_TIME}\s*(?:{_ZONE})?)?",
    )
]
_AMBIGUOUS = re.compile(r"(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d{2})(?:\D.*)?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_NUMBER = re.compile(r"(\d{10}|\d{13}|\d{16}|\d{19})(\.\d+)?")
_NAMED_ZONE = re.compile(rf"(?<![a-z])(?:{'|'.join(_NAMED_ZONES)})(?![a-z])", re.IGNORECASE)
_DIRECTIVE = re.compile("%(.?)", re.DOTALL)
# Directives of every Python that lamp_jax supports; some later versions have more.
_DIRECTIVES = "aAbBcdfGHIjmMpSuUVwWxXyYzZ%"


def read_date(text: str, *, form: str, format: str = "") -> tuple[tuple[float, ...], str]:
    """Sort key of a date, and its form in the item: LaMP's form unchanged, for others the day in UTC.

    Raises UnusableValue for an invalid date, and LampError for a date whose day and month are ambiguous.
    """
    text = text.strip()
    option = "--date-format" if format else "--date-form"
    try:
        if format:
            return _of_moment(parse_formatted_date(text, format))
        if form != "date":
            number = _number(text)
            return (number,), _day(number, form)
        try:
            return parse_date(text), text
        except ValueError:
            return _of_moment(parse_written_date(text))
    except (ValueError, OverflowError):
        raise UnusableValue(f"unreadable date (see {option})", repr(text)) from None


def parse_written_date(text: str) -> datetime:
    """Time of a date with a month's name, of an ISO time stamp with a zone's name, or of a number since 1970.

    Naive without a zone, midnight without a time. ValueError for anything else: an ambiguous name of a zone, and a
    number whose digits are not those of a time since 1970 between 2001 and 2286 in s, ms, us or ns. LampError for
    01/02/2003, which is ambiguous.
    """
    text = text.strip()
    if found := _EPOCH_NUMBER.fullmatch(text):
        return _EPOCH + timedelta(microseconds=int(Decimal(text).scaleb(16 - len(found[1]))))
    for form in _FORMS:
        if found := form.fullmatch(text):
            return _moment(**found.groupdict())
    if _AMBIGUOUS.fullmatch(text):
        raise LampError(
            f"the date {text!r}: its day and month are ambiguous; give their order with --date-format, such as "
            "%d/%m/%Y, %m/%d/%Y or %m/%d/%Y %I:%M:%S %p"
        )
    raise ValueError(f"not a date: {text!r}")


def _moment(
    *, year: str, month: str, day: str, hour: str | None, minute: str, second: str, fraction: str, zone: str | None
) -> datetime:
    """Moment of these fields of a text; `hour` and the fields after it may be None."""
    number = int(month) if month.isdecimal() else 1 + _MONTHS.index(month[:3].lower())
    moment = datetime(int(year), number, int(day))
    if hour:
        micros = int((fraction or "").ljust(6, "0")[:6])
        moment = moment.replace(hour=int(hour), minute=int(minute), second=int(second or 0), microsecond=micros)
    return moment.replace(tzinfo=_zone(zone)) if zone else moment


def _zone(text: str) -> timezone:
    """Zone written as +hh, +hhmm, +hh:mm or a name. ValueError for any other text."""
    if text[0] in "+-":
        digits = text[1:].replace(":", "").ljust(4, "0")
        hours, minutes = int(digits[:2]), int(digits[2:])
        if minutes > 59:
            raise ValueError(f"no zone: {text!r}")
        return timezone((-1 if text[0] == "-" else 1) * timedelta(hours=hours, minutes=minutes))
    if text.upper() not in _NAMED_ZONES:
        raise ValueError(f"no zone: {text!r}")
    return timezone(timedelta(hours=_NAMED_ZONES[text.upper()]))


def parse_formatted_date(text: str, format: str) -> datetime:
    """Moment of a date in a format of `strptime`, the same on every machine. ValueError for a text of another format.

    For `%Z` Python accepts the names of the machine's own zone and ignores them; here `%Z` is any name that is accepted
    in other formats.
    """
    text, format = text.strip(), format.strip()
    if "Z" not in _DIRECTIVE.findall(format):
        return datetime.strptime(text, format)
    for name in dict.fromkeys(_NAMED_ZONE.findall(text)):
        zone = _zone(name)
        try:
            moment = datetime.strptime(text, _with_zone(format, name))
        except ValueError:
            continue  # the name is not where the format has its zone
        if moment.tzinfo and moment.utcoffset() != zone.utcoffset(None):
            raise ValueError(f"two zones in {text!r}")
        return moment.replace(tzinfo=zone)
    raise ValueError(f"no zone in {text!r}")


def _with_zone(format: str, name: str) -> str:
    """Format with this name in place of `%Z`; `%%Z` is not a directive."""
    return _DIRECTIVE.sub(lambda found: name if found[1] == "Z" else found[0], format)


def check_date_format(format: str) -> None:
    """LampError for a date format that `strptime` cannot use, or that has no year."""
    directives = _DIRECTIVE.findall(format)
    for letter in directives:
        if letter not in set(_DIRECTIVES):
            raise LampError(
                f"--date-format {format!r}: {f'%{letter}'!r} is not a code of strptime; "
                f"the codes are {', '.join(f'%{known}' for known in _DIRECTIVES)}"
            )
    if not set(directives) & set("YyGcx"):
        raise LampError(f"--date-format {format!r}: has no year; give %Y, or %y for its last two digits")
    try:  # Some codes cannot be combined: a repeated code, or a year of ISO weeks without a week.
        example = _DIRECTIVE.sub(lambda found: _EPOCH.strftime(found[0]), format).strip()
        parse_formatted_date(example, format)
    except (ValueError, re.error) as error:
        raise LampError(f"--date-format {format!r}: cannot be used ({error}); give each code once") from None


def _of_moment(moment: datetime) -> tuple[tuple[float, ...], str]:
    moment = moment.astimezone(UTC) if moment.tzinfo else moment
    return (*moment.timetuple()[:6], moment.microsecond), moment.date().isoformat()


def _day(number: float, unit: str) -> str:
    since = timedelta(microseconds=number / 1000) if unit == "nanoseconds" else timedelta(**{unit: number})
    return (_EPOCH + since).date().isoformat()


def _number(text: str) -> float:
    try:
        return int(text)  # exactly
    except ValueError:
        return float(text)
