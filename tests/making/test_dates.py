"""Dates as tables have them: written in every accepted form they are the same moment."""

from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lamp_jax.errors import LampError
from lamp_jax.making.dates import parse_written_date
from lamp_jax.making.histories import read_date
from lamp_jax.making.tables import Unusable

MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
ZONES = {"UTC": 0, "GMT": 0, "EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7}
MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(2105, 1, 1)).map(lambda moment: moment.replace(microsecond=0))
OFFSETS = st.integers(-14 * 4, 14 * 4).map(lambda quarters: timezone(timedelta(minutes=15 * quarters)))


@given(MOMENTS, st.sampled_from(list(ZONES)))
def test_a_date_with_a_zones_name_is_that_moment(moment, zone):
    """As Sentiment140 writes dates."""
    text = f"{moment:%a %b %d %H:%M:%S} {zone} {moment:%Y}"
    found = parse_written_date(text)
    assert found == moment.replace(tzinfo=timezone(timedelta(hours=ZONES[zone])))
    assert read_date(text, form="date")[1] == f"{found.astimezone(UTC):%Y-%m-%d}"


@given(MOMENTS, OFFSETS, st.sampled_from(["%a %b %d %H:%M:%S %z %Y", "%Y-%m-%d %H:%M:%S %z", "%d %b %Y %H:%M:%S %z"]))
def test_a_date_with_an_offset_is_that_moment(moment, zone, form):
    """As Goodreads, the Twitter API, git and mails write dates."""
    moment = moment.replace(tzinfo=zone)
    for text in (moment.strftime(form), format_datetime(moment)):
        assert parse_written_date(text) == moment
        order, _ = read_date(text, form="date")
        assert order[:3] == moment.astimezone(UTC).timetuple()[:3]


@given(MOMENTS)
def test_a_date_without_a_zone_is_as_it_is_written(moment):
    month, day, year = MONTHS[moment.month - 1], moment.day, moment.year
    for text in (
        f"{month} {day}, {year}",
        f"{month[:3]} {day}, {year}",
        f"{day} {month} {year}",
        f"{day}-{month[:3]}-{year}",
    ):
        assert parse_written_date(text) == datetime(year, moment.month, day)
    assert parse_written_date(f"{moment:%Y/%m/%d %H:%M:%S}") == moment
    assert parse_written_date(f"{moment:%a %b %d %H:%M:%S %Y}") == moment


@given(st.integers(10**9, 10**10 - 1))
@example(1512121200)  # whose milliseconds Python reads as a day of the year 1512
def test_a_time_since_1970_is_told_by_its_digits(seconds):
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    for zeros in ("", "000", "000000", "000000000"):
        assert parse_written_date(f"{seconds}{zeros}") == moment
        assert read_date(f"{seconds}{zeros}", form="date")[1] == f"{moment:%Y-%m-%d}"
    units = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
    for unit, scale in units.items():
        assert read_date(str(seconds * scale), form=unit) == ((seconds * scale,), f"{moment:%Y-%m-%d}")


@given(st.lists(st.tuples(MOMENTS, OFFSETS), min_size=2, max_size=8))
def test_dates_are_ordered_by_the_moment_whatever_their_form(dates):
    forms = ["%a %b %d %H:%M:%S %z %Y", "%Y-%m-%dT%H:%M:%S%z", "%d %b %Y %H:%M:%S %z"]
    moments = [moment.replace(tzinfo=zone) for moment, zone in dates]
    orders = [read_date(one.strftime(forms[place % 3]), form="date")[0] for place, one in enumerate(moments)]
    assert sorted(range(len(dates)), key=lambda place: orders[place]) == sorted(
        range(len(dates)), key=lambda place: moments[place]
    )


@pytest.mark.parametrize("text", ["01/02/2003", "31/12/2003", "1.2.03", "12-31-2003 10:15 PM"])
def test_a_date_whose_day_and_month_may_be_exchanged_is_refused(text):
    with pytest.raises(LampError, match=r"day and month may be exchanged; .* --date-format"):
        read_date(text, form="date")


def test_a_format_reads_any_date():
    assert read_date("12/31/2003 10:15 PM", form="date", format="%m/%d/%Y %I:%M %p")[1] == "2003-12-31"
    assert read_date("31.12.2003 23:30 -0200", form="date", format="%d.%m.%Y %H:%M %z")[1] == "2004-01-01"
    with pytest.raises(Unusable, match="unreadable date"):
        read_date("2003", form="date", format="%d.%m.%Y")


@pytest.mark.parametrize(
    "text",
    ["", "May", "Feb 30 2009", "31 April 2009", "Mon Apr 06 22:19:45 CEST 2009", "123456", "99999999999", "25:00"],
)
def test_what_is_no_date_or_of_an_ambiguous_zone_is_unusable(text):
    with pytest.raises(Unusable, match="unreadable date"):
        read_date(text, form="date")


@given(st.text(max_size=30) | st.from_regex(r"[A-Z][a-z]{2} \w{1,9} [0-9:,+-]{1,12} ?\w{0,5}"))
def test_any_text_is_a_date_or_an_error_of_ours(text):
    try:
        order, day = read_date(text, form="date")
    except (Unusable, LampError):
        return
    assert order
    assert day
