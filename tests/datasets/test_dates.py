"""Dates in tables: all accepted forms of a date are the same time."""

import time
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lamp_jax.datasets.dates import check_date_format, parse_written_date, read_date
from lamp_jax.datasets.tables import UnusableValue
from lamp_jax.errors import LampError

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
def test_a_date_with_a_time_zone_name_is_converted_to_utc(moment, zone):
    """As Sentiment140 writes dates."""
    text = f"{moment:%a %b %d %H:%M:%S} {zone} {moment:%Y}"
    found = parse_written_date(text)
    assert found == moment.replace(tzinfo=timezone(timedelta(hours=ZONES[zone])))
    assert read_date(text, form="date")[1] == f"{found.astimezone(UTC):%Y-%m-%d}"


@given(MOMENTS, OFFSETS, st.sampled_from(["%a %b %d %H:%M:%S %z %Y", "%Y-%m-%d %H:%M:%S %z", "%d %b %Y %H:%M:%S %z"]))
def test_a_date_with_an_offset_is_converted_to_utc(moment, zone, form):
    """As Goodreads, the Twitter API, git and mails write dates."""
    moment = moment.replace(tzinfo=zone)
    for text in (moment.strftime(form), format_datetime(moment)):
        assert parse_written_date(text) == moment
        order, _ = read_date(text, form="date")
        assert order[:3] == moment.astimezone(UTC).timetuple()[:3]


FORMS = [
    "{0:%a %b %d %H:%M:%S} {1} {0:%Y}",
    "{0:%a, %d %b %Y %H:%M:%S} {1}",
    "{0:%d-%b-%Y %H:%M:%S}{1}",
    "{0:%a, %d %b %Y %H:%M:%S} {1} (a comment)",
    "{0:%B %d, %Y, %H:%M:%S} {1}",
    "{0:%b %d %Y %H:%M:%S.000}{1}",
    "{0:%Y/%m/%d %H:%M:%S}{1}",
    "{0:%Y/%m/%d %H:%M:%S} {1}",
    "{0:%Y-%m-%d %H:%M:%S}{1}",
    "{0:%Y-%m-%d %H:%M:%S} {1}",
    "{0:%Y-%m-%dT%H:%M:%S}{1}",
    "{0:%Y-%m-%dT%H:%M:%S,000}{1}",
    "{0.year}-{0.month}-{0.day} {0.hour}:{0:%M:%S}{1}",
    "{0.year}/{0.month}/{0.day} {0.hour}:{0:%M:%S} {1}",
]


@given(MOMENTS, OFFSETS | st.sampled_from(list(ZONES)), st.sampled_from(FORMS), st.booleans())
def test_every_date_form_accepts_every_notation_of_a_zone(moment, zone, form, lower):
    if isinstance(zone, str):
        moment, writings = moment.replace(tzinfo=timezone(timedelta(hours=ZONES[zone]))), [zone]
    else:
        moment = moment.replace(tzinfo=zone)
        hhmm = f"{moment:%z}"
        writings = [hhmm, f"{hhmm[:3]}:{hhmm[3:]}", *([hhmm[:3]] if hhmm.endswith("00") else [])]
        writings += ["Z", "UTC", "UT", "GMT", "-0000", "-00:00"] if hhmm == "+0000" else []
    expected = moment.astimezone(UTC)
    for writing in writings:
        text = form.format(moment, writing)
        text = text.lower() if lower else text
        order, day = read_date(text, form="date")
        assert order == (*expected.timetuple()[:6], 0), text
        # A date in LaMP's form is copied into the item unchanged.
        assert day in (f"{expected:%Y-%m-%d}", text), text


@pytest.mark.parametrize(
    "text",
    [
        "Mon, 06 Apr 2009 22:00:00 -07:75", "Mon, 06 Apr 2009 22:00:00 +99:00", "2009/04/06 22:00:00 -24:00",
        "Mon, 06 Apr 2009 22:00:00 -7", "Mon, 06 Apr 2009 22:00:00 AST", "2009-04-06 22:00 IST",
        "2009/04/06 22:00+7:00",
        "06 Apr 2009 22:00:00 (PDT)", "2009-04-06-07:00", "2009-04-06+07:00", "2009-04-06Z", "20090406-0700",
        "2009/04/06 -07:00", "06 Apr 2009 -07:00", "2009-04-06 22:00:00 \N{MINUS SIGN}07:00",
        "2009-04-06T22:00:00-07:00:00:00",
        "2009-04-06T22:00:00-07:75", "2009-04-06T22:00:00-0775", "2009-04-06T22:00:00-7:00",
        "2009-04-06T22:00:00PDT PDT",
    ],
)  # fmt: skip
def test_an_unknown_zone_is_refused(text):
    with pytest.raises(UnusableValue, match="unreadable date"):
        read_date(text, form="date")


@given(MOMENTS)
def test_months_days_and_hours_of_one_digit_are_read(moment):
    for mark in "-/":
        day = f"{moment.year}{mark}{moment.month}{mark}{moment.day}"
        expected = (*moment.timetuple()[:6], 0)
        assert read_date(f"{day} {moment.hour}:{moment:%M:%S}", form="date")[0] == expected
        assert read_date(f"{day} {moment.hour}:{moment:%M}", form="date")[0] == (*expected[:5], 0, 0)
        assert read_date(f"{day} {moment.hour}:{moment:%M:%S}.25", form="date")[0] == (*expected[:6], 250000)


@given(MOMENTS)
def test_a_date_without_a_zone_is_unchanged(moment):
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
@example(1512121200)  # Python reads its milliseconds as a day of the year 1512
def test_the_unit_of_a_time_since_1970_is_inferred_from_its_digits(seconds):
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    for zeros in ("", "000", "000000", "000000000"):
        assert parse_written_date(f"{seconds}{zeros}") == moment
        assert read_date(f"{seconds}{zeros}", form="date")[1] == f"{moment:%Y-%m-%d}"
    assert parse_written_date(f"{seconds}.25") == moment + timedelta(seconds=0.25)
    assert parse_written_date(f"{seconds}125.5") == moment + timedelta(seconds=0.1255)
    units = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
    for unit, scale in units.items():
        assert read_date(str(seconds * scale), form=unit) == ((seconds * scale,), f"{moment:%Y-%m-%d}")


@given(st.lists(st.tuples(MOMENTS, OFFSETS), min_size=2, max_size=8))
def test_dates_in_any_form_are_ordered_by_time(dates):
    forms = ["%a %b %d %H:%M:%S %z %Y", "%Y-%m-%dT%H:%M:%S%z", "%d %b %Y %H:%M:%S %z"]
    moments = [moment.replace(tzinfo=zone) for moment, zone in dates]
    orders = [read_date(one.strftime(forms[place % 3]), form="date")[0] for place, one in enumerate(moments)]
    assert sorted(range(len(dates)), key=lambda place: orders[place]) == sorted(
        range(len(dates)), key=lambda place: moments[place]
    )


@pytest.mark.parametrize("text", ["01/02/2003", "31/12/2003", "1.2.03", "12-31-2003 10:15 PM"])
def test_a_date_with_ambiguous_day_and_month_is_refused(text):
    with pytest.raises(LampError, match=r"day and month are ambiguous; .* --date-format"):
        read_date(text, form="date")


def test_a_format_reads_any_date():
    assert read_date("12/31/2003 10:15 PM", form="date", format="%m/%d/%Y %I:%M %p")[1] == "2003-12-31"
    assert read_date("31.12.2003 23:30 -0200", form="date", format="%d.%m.%Y %H:%M %z")[1] == "2004-01-01"
    assert read_date(" 2003 ", form="date", format=" %Y ")[1] == "2003-01-01"
    with pytest.raises(UnusableValue, match=r"unreadable date \(see --date-format\)"):
        read_date("2003", form="date", format="%d.%m.%Y")


@pytest.fixture(params=["UTC", "America/Los_Angeles", "Asia/Kolkata"])
def machine_zone(request, monkeypatch):
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("machine_zone")
def test_a_format_with_a_zone_name_gives_the_same_time_on_every_machine():
    for zone, hours in ZONES.items():
        moment = datetime(2009, 4, 6, 22, tzinfo=timezone(timedelta(hours=hours))).astimezone(UTC)
        expected = ((*moment.timetuple()[:6], 0), f"{moment:%Y-%m-%d}")
        for text, form in (
            (f"2009-04-06 22:00 {zone}", "%Y-%m-%d %H:%M %Z"),
            (f"{zone.lower()} 2009-04-06 22:00", "%Z %Y-%m-%d %H:%M"),
            (f"EST: 2009-04-06 22:00{zone} Z %Z", "EST: %Y-%m-%d %H:%M%Z Z %%Z"),
            (f"2009-04-06 22:00 {hours:+03}00 {zone}", "%Y-%m-%d %H:%M %z %Z"),
        ):
            assert read_date(text, form="date", format=form) == expected, text
    for text in ("2009-04-06 22:00 IST", "2009-04-06 22:00", "2009-04-06 22:00 ", "2009-04-06 22:00 -0700"):
        with pytest.raises(UnusableValue, match="unreadable date"):
            read_date(text, form="date", format="%Y-%m-%d %H:%M %Z")
    with pytest.raises(UnusableValue, match="unreadable date"):
        read_date("2009-04-06 22:00 +0000 PDT", form="date", format="%Y-%m-%d %H:%M %z %Z")


@pytest.mark.parametrize(
    "format",
    [
        "%d.%m.%Y", "%c", "%x %X", "%y%m%d%H%M%S%f", "%G-W%V-%u", "%Y %j", "%A %d %B %Y %I:%M %p", "%Y %U %w", "%Y%%",
        "%Y-%m-%d %Z", "%a %b %d %H:%M:%S %Z %Y", "%Y-%m-%dT%H:%M:%S%z", " %Y年%m月%d日 ",
    ],
)  # fmt: skip
def test_a_usable_format_is_accepted(format):
    check_date_format(format)


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("%Y-%Q", "'%Q' is not a code of strptime; the codes are %a, %A"), ("%Y-%", "'%' is not a code"),
        ("%-d.%m.%Y", "'%-' is not a code"), ("%Y % d", "'% ' is not a code"), ("%é %Y", "'%é' is not a code"),
        ("%Y %Y", "cannot be used"), ("%c %Y", "cannot be used"), ("%G", "cannot be used"),
        ("%d.%m.", "has no year; give %Y"), ("today", "has no year"), ("%%Y", "has no year"),
    ],
)  # fmt: skip
def test_an_unusable_format_is_refused(format, message):
    with pytest.raises(LampError, match=f"--date-format .*{message}"):
        check_date_format(format)


@pytest.mark.parametrize(
    "text",
    ["", "May", "Feb 30 2009", "31 April 2009", "Mon Apr 06 22:19:45 CEST 2009", "123456", "99999999999", "25:00"],
)
def test_invalid_dates_and_ambiguous_zones_are_unusable(text):
    with pytest.raises(UnusableValue, match="unreadable date"):
        read_date(text, form="date")


@given(st.text(max_size=30) | st.from_regex(r"[A-Z][a-z]{2} \w{1,9} [0-9:,+-]{1,12} ?\w{0,5}"))
def test_any_text_is_a_date_or_a_lamp_error(text):
    try:
        order, day = read_date(text, form="date")
    except (UnusableValue, LampError):
        return
    assert order
    assert day
