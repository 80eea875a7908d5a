"""Histories from rows of every format; unusable rows are dropped with a reason, or rejected by name."""

import csv
import datetime
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.datasets import histories
from lamp_jax.datasets.columns import open_history_table, parse_map, parse_pattern, split_join
from lamp_jax.datasets.histories import Reservoir, gather, read_date, read_label
from lamp_jax.datasets.tables import UnusableValue, columns_of, read_lookup, read_rows, text_of
from lamp_jax.errors import LampError
from lamp_jax.options import Build
from lamp_jax.tasks.catalog import find_task

REVIEWS = find_task("LaMP-3")


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_parquet(path, rows, **more):
    pq.write_table(pa.Table.from_pylist(rows), path, **more)
    return str(path)


def gather_all(tmp_path, path, **options):
    """The gathered rows of a file, and its histories."""
    settings = Build(**{"histories": path, "task": "LaMP-3", "output": "", **options})
    source = open_history_table(settings)
    folder = tmp_path / "buckets"
    folder.mkdir(parents=True)
    found = gather(source.rows(), folder=folder, options=settings)
    return found, [history for bucket in found.buckets for history in bucket.histories()]


ROWS = [
    {"user": f"u{number % 3}", "text": text, "score": number % 5 + 1, "date": f"2020-01-{30 - number:02}"}
    for number, text in enumerate(["a, b", 'say "x"', "two\nlines", "é{}", "a\u2028b", "z" * 200_000])
]


def test_csv_jsonl_and_parquet_have_the_same_rows(tmp_path):
    columns = list(ROWS[0])
    paths = [
        write_csv(tmp_path / "a.csv", [columns, *(row.values() for row in ROWS)]),
        write_jsonl(tmp_path / "a.jsonl", ROWS),
        write_parquet(tmp_path / "a.parquet", ROWS, row_group_size=2),
    ]
    for path in paths:
        assert columns_of(path) == tuple(columns)
        rows = read_rows(path, columns)
        assert [[text_of(row[name]) for name in columns] for row in rows] == [
            [text_of(row[name]) for name in columns] for row in ROWS
        ]


def test_byte_order_marks_and_empty_lines_are_skipped(tmp_path):
    (tmp_path / "a.csv").write_bytes("\ufeffuser,text\r\n\r\n1,x\r\n".encode())
    (tmp_path / "a.jsonl").write_bytes('\ufeff\n{"user": "1", "text": "x"}\n\n'.encode())
    for name in ("a.csv", "a.jsonl"):
        assert columns_of(tmp_path / name) == ("user", "text")
        assert list(read_rows(tmp_path / name, ["user"])) == [{"user": "1", "text": "x"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt: rows are read from files named \.parquet, \.csv"),
        ("a.csv", b"", r"a\.csv: empty"),
        ("a.jsonl", b"\n", r"a\.jsonl: contains no rows"),
        ("a.parquet", b"", r"a\.parquet: not a complete parquet file"),
        ("a.csv", b"a,b,a\n1,2,3\n", r"two columns have the same name"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", r"row 2: 3 values for 2 columns"),
        ("a.csv", b'a,b\n1,2\n1,"2\n', r"row 2: unexpected end of data"),
        ("a.csv", b"a,b\n1,\xff\n", r"not UTF-8"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"line 2: invalid JSON"),
        ("a.jsonl", b'[{"a": 1}]\n', r"line 1: each line must be an object; found \["),
    ],
)
def test_a_broken_file_is_named_with_the_row(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(LampError, match=message):
        list(read_rows(path, columns_of(path)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LampError, match="no such file"):
        columns_of(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("value", "text"),
    [("x", "x"), (4, "4"), (4.5, "4.5"), (None, ""), (float("nan"), ""), (["a", "b"], "a, b"), ([], "")],
)
def test_values_are_read_as_text(value, text):
    assert text_of(value) == text


def test_dates_of_parquet_are_read_as_dates(tmp_path):
    rows = [{**ROWS[0], "date": datetime.datetime(2020, 5, 1 + day, 3)} for day in (1, 0)]
    _, (history,) = gather_all(tmp_path, write_parquet(tmp_path / "a.parquet", rows))
    assert [entry.item["date"] for entry in history.entries] == ["2020-05-01 03:00:00", "2020-05-02 03:00:00"]


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("title", "Heat"),
        ("{title}. Genres: {genres}.", "Heat. Genres: Crime|Drama."),
        ("{genres|, }", "Crime, Drama"),
        ("{genres|}", "CrimeDrama"),
        ("{{{title}}}: {many}", "{Heat}: a|x, b"),
        ("{many|; }", "a; x; b"),
        ("{title}{nothing}!", "Heat!"),
        ("<{nothing}>", ""),
        ("<{blank}{nothing}>", ""),
    ],
)
def test_a_pattern_is_filled(pattern, text):
    row = {"title": "Heat", "genres": "Crime|Drama", "many": ["a|x", "b"], "nothing": None, "blank": "  "}
    assert parse_pattern(pattern).fill(row) == text


@given(st.text(st.characters(exclude_characters="{}"), min_size=1), st.text())
def test_text_around_a_column_is_unchanged(around, value):
    pattern = parse_pattern(f"{around}{{x}}{around}")
    assert pattern.columns == ["x"]
    assert pattern.fill({"x": value}) == (around + value + around if value.strip() else "")


@given(st.text("ab{}|"))
def test_any_pattern_is_filled_or_refused(text):
    try:
        pattern = parse_pattern(text)
    except LampError:
        pattern = None
    if pattern is None:
        assert set(text) & {"{", "}"}
    else:
        assert pattern.fill(dict.fromkeys(pattern.columns, "value")).count("value") == len(pattern.columns)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("text", "write FIELD=COLUMN"),
        ("text=", "write FIELD=COLUMN"),
        ("review=text", "no field 'review'; the fields of LaMP-3 are user, text, score, date, input"),
        ("reference=x", "no field 'reference'"),
        ("text={a", "unmatched brace"),
        ("text={a}}", "unmatched brace"),
        ("text={}", "unmatched brace"),
        ("text={{a}}", "names no column"),
    ],
)
def test_a_bad_map_is_refused_by_name(entry, message):
    with pytest.raises(LampError, match=message):
        parse_map([entry], REVIEWS)


def test_a_field_cannot_be_mapped_twice():
    with pytest.raises(LampError, match="mapped twice"):
        parse_map(["text=a", "text=b"], REVIEWS)


@pytest.mark.parametrize("entry", ["movies.csv", ":id", "movies.csv:"])
def test_a_bad_join_is_refused(entry):
    with pytest.raises(LampError, match="write FILE:COLUMN"):
        split_join(entry)


def test_a_missing_column_is_named_with_the_existing_columns(tmp_path):
    path = write_csv(tmp_path / "a.csv", [["who", "text", "score", "date"], ["1", "x", "4", "2020"]])
    with pytest.raises(LampError, match=r"'user' needs a column 'user'.*--map user=COLUMN.*date, score, text, who"):
        open_history_table(Build(path, "LaMP-3", output=""))
    with pytest.raises(LampError, match=r"'user' needs a column 'whom'.*correct its --map"):
        open_history_table(Build(path, "LaMP-3", output="", map=("user=whom",)))
    with pytest.raises(LampError, match=r"'date' needs a column 'date'"):
        open_history_table(
            Build(write_jsonl(tmp_path / "a.jsonl", [{"user": 1, "text": "", "score": 1}]), "LaMP-3", output="")
        )


def test_the_user_split_needs_no_dates(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"user": 1, "text": text, "score": 1} for text in "ba"])
    _, (history,) = gather_all(tmp_path, path, split="user")
    assert [entry.item for entry in history.entries] == [{"text": "b", "score": "1"}, {"text": "a", "score": "1"}]


def test_joined_tables_add_their_columns_and_rows_without_a_partner_are_dropped(tmp_path):
    movies = write_csv(tmp_path / "m.csv", [["id", "text", "by"], ["1", "Heat", "d1"], ["2", "Ali", "d2"]])
    people = write_jsonl(tmp_path / "p.jsonl", [{"by": "d1", "name": "Mann"}])
    rows = [{"user": 1, "id": number, "score": 3, "date": 2000} for number in (1, 2, 3, 1)]
    found, (history,) = gather_all(
        tmp_path,
        write_jsonl(tmp_path / "a.jsonl", rows),
        join=(f"{movies}:id", f"{people}:by"),
        map=("text={text} by {name}",),
    )
    assert [entry.item["text"] for entry in history.entries] == ["Heat by Mann"] * 2
    dropped = {reason: (rows.count, rows.first_rows) for reason, rows in found.dropped.items()}
    assert dropped == {"no partner in p.jsonl": (1, [2]), "no partner in m.csv": (1, [3])}


def test_the_user_may_be_in_a_joined_table_and_users_without_a_partner_are_counted(tmp_path):
    visits = write_csv(tmp_path / "v.csv", [["visit", "who"], ["1", "u1"], ["2", "u2"]])
    rows = [{"visit": visit, "user": f"v{visit}", "text": "x", "score": 1, "date": 2000} for visit in (3, 2, 1)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "1").mkdir()
    _, users = gather_all(tmp_path / "1", path, join=(f"{visits}:visit",), map=("user=who",))
    assert [history.user for history in users] == ["u2", "u1"]
    _, users = gather_all(tmp_path, path, join=(f"{visits}:visit",))
    assert [(history.user, len(history.entries)) for history in users] == [("v3", 0), ("v2", 1), ("v1", 1)]


def test_a_join_of_unsuitable_columns_is_refused(tmp_path):
    rows = write_jsonl(tmp_path / "a.jsonl", ROWS)
    twice = write_csv(tmp_path / "m.csv", [["user", "x"], ["u1", "1"], ["u1", "2"]])
    with pytest.raises(LampError, match=r"m\.csv, row 2: user 'u1' occurs twice"):
        open_history_table(Build(rows, "LaMP-3", output="", join=(f"{twice}:user",)))
    with pytest.raises(LampError, match=r"no column 'id' in .*m\.csv, which has user, x"):
        open_history_table(Build(rows, "LaMP-3", output="", join=(f"{twice}:id",)))
    with pytest.raises(LampError, match=r"no column 'x' in the rows to which it is joined"):
        open_history_table(Build(rows, "LaMP-3", output="", join=(f"{twice}:x",)))
    clash = write_csv(tmp_path / "c.csv", [["user", "text"], ["u1", "1"]])
    with pytest.raises(LampError, match=r"c\.csv: the column 'text' is in .*a\.jsonl too"):
        open_history_table(Build(rows, "LaMP-3", output="", join=(f"{clash}:user",)))
    with pytest.raises(LampError, match=r"n\.jsonl, row 1: k is a value of type dict"):
        read_lookup(write_jsonl(tmp_path / "n.jsonl", [{"k": {}}]), "k", [])


@pytest.mark.parametrize(
    ("value", "rounding", "label"),
    [
        ("4.0", "no", "4"), ("4", "no", "4"), (" 4 ", "no", "4"), ("5e0", "no", "5"),
        ("3.5", "up", "4"), ("0.5", "up", "1"), ("3.5", "down", "3"), ("3.5", "nearest", "4"), ("2.5", "nearest", "3"),
        ("3.4", "nearest", "3"), ("4", "up", "4"),
    ],
)  # fmt: skip
def test_a_number_is_mapped_to_its_label(value, rounding, label):
    assert read_label(value, REVIEWS, rounding=rounding) == label


@pytest.mark.parametrize(
    ("value", "rounding", "reason"),
    [
        ("3.5", "no", "between two labels"), ("0", "no", "not a label"), ("5.5", "up", "not a label"),
        ("0.5", "down", "not a label"), ("inf", "up", "not a label"), ("nan", "no", "not a label"),
        ("good", "up", "not a label"),
    ],
)  # fmt: skip
def test_rows_with_an_invalid_label_are_dropped(value, rounding, reason):
    with pytest.raises(UnusableValue, match=reason):
        read_label(value, REVIEWS, rounding=rounding)


def test_labels_that_are_words_are_matched_exactly():
    assert read_label(" true story\n", find_task("LaMP-2"), rounding="no") == "true story"
    with pytest.raises(UnusableValue, match="tag is not a label of LaMP-2"):
        read_label("3", find_task("LaMP-2"), rounding="no")


@given(st.datetimes(timezones=st.just(datetime.UTC)))
def test_times_since_1970_are_days_in_utc_ordered_by_the_moment(moment):
    seconds = (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(seconds=1)
    day = moment.date().isoformat()
    assert read_date(str(seconds), form="seconds") == ((seconds,), day)
    assert read_date(str(seconds * 1000 + 999), form="milliseconds") == ((seconds * 1000 + 999,), day)
    assert read_date(f"{seconds}.0", form="seconds") == ((seconds,), day)


@pytest.mark.parametrize(
    ("text", "form"),
    [("May 3", "date"), ("", "date"), ("2000-13", "date"), ("", "seconds"), ("nan", "seconds"), ("inf", "seconds"),
     ("2000-01-01", "seconds"), ("9" * 30, "milliseconds"), ("9" * 9000, "seconds")],
)  # fmt: skip
def test_a_date_that_cannot_be_read_drops_the_row(text, form):
    with pytest.raises(UnusableValue, match="unreadable date"):
        read_date(text, form=form)


def test_every_reason_is_counted_with_its_first_rows(tmp_path):
    bad = [
        *({**ROWS[0], "user": user} for user in (None, " ", "", "\n")),
        *({**ROWS[0], "text": text} for text in (None, "", " \n")),
        {**ROWS[0], "text": {"a": 1}},
        {**ROWS[0], "score": None},
        *[{**ROWS[0], "score": 3.5}] * 6,
        {**ROWS[0], "score": 7},
        {**ROWS[0], "date": "May"},
    ]
    found, users = gather_all(tmp_path, write_jsonl(tmp_path / "a.jsonl", [*bad, *ROWS]))
    assert {reason: (rows.count, rows.first_rows) for reason, rows in found.dropped.items()} == {
        "no user": (4, [1, 2, 3, 4]),
        "no text": (3, [5, 6, 7]),
        "a value of type dict, which is not a text": (1, [8]),
        "no score": (1, [9]),
        "score between two labels (see --round-scores)": (6, [10, 11, 12, 13, 14]),
        "score is not a label of LaMP-3": (1, [16]),
        "unreadable date (see --date-form)": (1, [17]),
    }
    assert (found.rows, found.kept, found.users) == (17 + len(ROWS), len(ROWS), 3)
    assert [history.user for history in users] == ["u0", "u1", "u2"]


def test_a_file_without_usable_rows_is_refused_with_the_reasons(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{**row, "date": "May"} for row in ROWS])
    with pytest.raises(
        LampError, match=r"none of its 6 rows is usable; unreadable date .*: 6 \(first rows 1, 2, 3, 4, 5; 'May'\)"
    ):
        gather_all(tmp_path, path)


def test_a_file_with_only_a_header_is_refused(tmp_path):
    with pytest.raises(LampError, match="contains no rows"):
        gather_all(tmp_path, write_csv(tmp_path / "a.csv", [list(ROWS[0])]))


def test_users_keep_their_type_and_their_order_over_many_buckets(tmp_path, monkeypatch):
    monkeypatch.setattr(histories, "_BUCKET_USERS", 3)
    monkeypatch.setattr(histories, "_BUFFERED_BYTES", 500)
    users = [7, "8", "b", 3, "a", 2**60, "é\U0001f600"]
    rows = [
        {"user": user, "text": f"{place} of {user}", "score": 1, "date": 2000 + place % 2}
        for place in range(5)
        for user in (users if place == 0 else users[::-1])
    ]
    found, gathered = gather_all(tmp_path, write_jsonl(tmp_path / "a.jsonl", rows))
    assert [len(bucket.users) for bucket in found.buckets] == [3, 3, 1]
    assert [(history.user, type(history.user)) for history in gathered] == [(user, type(user)) for user in users]
    for history, user in zip(gathered, users, strict=True):
        assert [entry.item["text"] for entry in history.entries] == [f"{place} of {user}" for place in (0, 2, 4, 1, 3)]


def test_a_user_id_as_text_and_as_number_is_the_same_user(tmp_path):
    movies = write_jsonl(tmp_path / "m.jsonl", [{"id": 5, "text": "Heat"}, {"id": "6", "text": "Ali"}])
    rows = [
        {"user": user, "id": movie, "score": 1, "date": date}
        for user, movie, date in ((1, "5", 2001), ("2", 5, 2002), ("1", 6, 2003), (2, "6", 2004), (1, 6, 2005))
    ]
    found, gathered = gather_all(tmp_path, write_jsonl(tmp_path / "a.jsonl", rows), join=(f"{movies}:id",))
    assert [(history.user, [entry.order[0] for entry in history.entries]) for history in gathered] == [
        (1, [2001, 2003, 2005]),
        ("2", [2002, 2004]),
    ]
    assert [entry.item["text"] for entry in gathered[0].entries] == ["Heat", "Ali", "Ali"]
    assert (found.users, found.kept) == (2, 5)


def test_a_user_id_is_a_text_or_an_integer(tmp_path):
    bad = [1.0, True, 1.5, [1], False, 2**70 + 0.5]
    path = write_jsonl(tmp_path / "a.jsonl", [{**ROWS[0], "user": user} for user in bad] + ROWS)
    found, users = gather_all(tmp_path, path)
    assert {reason: (rows.count, rows.first_rows, rows.example) for reason, rows in found.dropped.items()} == {
        "a user id of type float, neither a text nor an integer": (3, [1, 3, 6], "1.0"),
        "a user id of type bool, neither a text nor an integer": (2, [2, 5], "True"),
        "a user id of type list, neither a text nor an integer": (1, [4], "[1]"),
    }
    assert [history.user for history in users] == ["u0", "u1", "u2"]
    with pytest.raises(LampError, match=r"none of its 1 rows is usable; a user id of type float, .*first rows 1; 1\.0"):
        gather_all(tmp_path / "1", write_jsonl(tmp_path / "b.jsonl", [{**ROWS[0], "user": 1.0}]))


def test_integer_users_of_parquet_are_read_where_some_are_missing(tmp_path):
    rows = [{**ROWS[0], "user": user} for user in (7.0, None, 8.0, 7.0, 1.5)]
    found, users = gather_all(tmp_path, write_parquet(tmp_path / "a.parquet", rows))
    assert [(history.user, len(history.entries)) for history in users] == [(7, 2), (8, 1)]
    assert all(type(history.user) is int for history in users)
    assert [rows.first_rows for rows in found.dropped.values()] == [[2], [5]]


@given(st.lists(st.sampled_from([f"paper {number}" for number in range(40)]), max_size=60), st.integers(1, 50))
def test_a_reservoir_depends_only_on_the_set_of_offered_texts(texts, size):
    drawn = []
    for offered in (texts, texts[::-1], sorted(set(texts))):
        reservoir = Reservoir(size, seed=1)
        for text in offered:
            reservoir.offer(text)
        drawn.append(reservoir.texts)
    assert drawn[0] == drawn[1] == drawn[2]
    assert len(drawn[0]) == len(set(drawn[0])) == min(size, len(set(texts)))
    assert set(drawn[0]) <= set(texts)
