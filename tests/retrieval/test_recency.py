"""Rankings by recency: every form of date, newest first, and errors that name invalid dates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.data.files import Question
from lamp_jax.errors import LampError
from lamp_jax.retrieval.recency import dates_of, parse_date, rank_recency


def dated(*dates):
    return Question("q", "", tuple({"id": str(place), "date": date} for place, date in enumerate(dates)))


def order(*dates):
    (ranked,) = rank_recency([dated(*dates)])
    assert ranked.scores.tolist() == [1 / rank for rank in range(1, len(dates) + 1)]
    return [int(item_id) for item_id in ranked.item_ids]


def test_the_newest_item_is_first_and_of_equal_dates_the_later_item():
    assert order("2007-05-03", "2010-01-01", "2007-05-03", "2009-12-31") == [1, 3, 2, 0]


@given(st.lists(st.dates(), max_size=12))
def test_any_dates_are_in_calendar_order(dates):
    expected = sorted(range(len(dates)), key=lambda place: (dates[place], place))[::-1]
    assert order(*[f"{date.year}-{date.month}-{date.day}" for date in dates]) == expected
    assert order(*[date.isoformat() for date in dates]) == expected


@given(st.lists(st.datetimes(timezones=st.timezones()), max_size=8))
def test_time_stamps_are_ordered_by_time(moments):
    read = []
    for moment in moments:
        try:
            read.append((parse_date(moment.isoformat()), moment))
        except ValueError:  # beyond the calendar in UTC
            assert moment.year in (1, 9999)
    assert [date for date, _ in sorted(read)] == [date for date, _ in sorted(read, key=lambda pair: pair[1])]


def test_years_months_days_numbers_and_time_stamps_can_be_compared():
    forms = [2006, "2007", "2007-05", "2007-5-3", "2007-05-03T00:00:01", "2007-05-03 23:59:59.5+01:00"]
    forms += ["2007-05-03T23:30:00Z", " 2008 "]
    assert [parse_date(form) for form in forms] == sorted(parse_date(form) for form in forms)
    assert parse_date("2007-00-00") == (2007, 0, 0)
    assert parse_date("2007-05-03T02:00:00+02:00") == parse_date("2007-05-03T00:00:00Z")


@pytest.mark.parametrize(
    "date",
    [
        *("", "yesterday", "2007-13", "2007-05-32", "May 2007", None, 3.5, 1178150400, "1-2-3-4"),
        *("2007-05-03-07:00", "2007-05-03T22:00-07:75"),
    ],
)
def test_an_unreadable_date_is_named_with_question_and_item(date):
    with pytest.raises(LampError, match=r"question 'q', profile item '1': cannot read the date .*2007-05-31"):
        list(rank_recency([dated("2007", date)]))


def test_a_missing_date_is_named_and_a_split_without_dates_is_recognised():
    with pytest.raises(LampError, match=r"question 'q', profile item '1': no 'date', though other items"):
        dates_of(Question("q", "", ({"id": "0", "date": 2007}, {"id": "1"})))
    with pytest.raises(LampError, match=r"question 'q': no profile item has a 'date'.*time-based"):
        list(rank_recency([Question("q", "", ({"id": "0"}, {"id": "1"}))]))


def test_an_empty_profile_has_an_empty_ranking():
    (ranked,) = rank_recency([Question("q", "", ())])
    assert (ranked.question_id, ranked.item_ids, len(ranked.scores)) == ("q", [], 0)
