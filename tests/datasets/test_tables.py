"""Tables as downloaded: compressed, as JSON lines, with other column names or encodings, without a header."""

import csv
import gzip
import io
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_jax.datasets import tables
from lamp_jax.datasets.tables import TextFormat, columns_of, read_rows
from lamp_jax.errors import LampError
from lamp_jax.options import Build, Work
from lamp_jax.runs import json_records
from lamp_jax.stages.build import run

TEXTS = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=8)
ROWS = st.lists(st.tuples(TEXTS.filter(str.strip), TEXTS), min_size=1, max_size=5)


def as_csv(rows, delimiter: str, header: bool) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([*([("user", "text")] if header else []), *rows])
    return out.getvalue()


def as_json(rows, complete: bool) -> str:
    objects = [json.dumps({"user": user, "text": text}, ensure_ascii=False) for user, text in rows]
    return f"[{', '.join(objects)}]" if complete else "\n".join(objects)


WRITERS = {
    "a.csv": lambda rows: as_csv(rows, ",", True),
    "a.tsv": lambda rows: as_csv(rows, "\t", True),
    "b.csv": lambda rows: as_csv(rows, ",", False),
    "a.jsonl": lambda rows: as_json(rows, False),
    "a.ndjson": lambda rows: as_json(rows, False),
    "lines.json": lambda rows: as_json(rows, False),
    "list.json": lambda rows: as_json(rows, True),
    "far.json": lambda rows: " \r\n" * 100 + as_json(rows, True),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16", "utf-16-be", "shift_jis"])
@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=15)
@given(ROWS)
def test_a_table_is_the_same_in_every_file(tmp_path_factory, name, ending, encoding, rows):
    try:
        data = WRITERS[name](rows).encode(encoding)
    except UnicodeEncodeError:
        return
    if encoding == "shift_jis" and data.decode(encoding) != WRITERS[name](rows):  # a yen sign becomes a backslash
        return
    path = tmp_path_factory.mktemp("tables") / f"{name}{ending}"
    path.write_bytes(gzip.compress(data) if ending else data)
    names = ("user", "text") if name == "b.csv" else ()
    # A byte order mark is skipped also where the encoding does not announce it.
    for read_as in {encoding, "utf-8"} if encoding.startswith("utf-8") else {encoding}:
        found = list(read_rows(path, ["user", "text"], TextFormat(read_as, names)))
        assert [(row["user"], row["text"]) for row in found] == rows
        assert columns_of(path, TextFormat(read_as, names)) == ("user", "text")


@pytest.mark.parametrize("name", ["long.json", "long.json.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16"])
def test_a_long_list_is_read_in_chunks(tmp_path, monkeypatch, name, encoding):
    monkeypatch.setattr(json_records, "_BLOCK", 1000)
    monkeypatch.setattr(tables, "_BLOCK", 100)
    rows = [(f"u{place}", "é" * (place % 90)) for place in range(1000)]
    data = as_json(rows, True).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    found = read_rows(tmp_path / name, ["user", "text"], TextFormat(encoding))
    assert [(row["user"], row["text"]) for row in found] == rows


@pytest.mark.parametrize(
    "encoding",
    [
        "rot13", "hex", "base64", "zip", "uu", "nowhere", "undefined", "idna", "punycode", "unicode_escape", "",
        "utf-8\0", "utf-8\ud800", "é", "../x", "raw-unicode-escape",
    ],
)  # fmt: skip
def test_an_unknown_encoding_is_refused(tmp_path, encoding):
    (tmp_path / "a.csv").write_text("user,text,score,date\nu,x,1,2020\n")
    with pytest.raises(LampError, match=r"--encoding .*; give utf-8, latin-1"):
        run(Build(str(tmp_path / "a.csv"), "LaMP-3", output=str(tmp_path / "out"), encoding=encoding))


def test_an_unreadable_table_is_named_with_position_and_remedy(tmp_path):
    complete = gzip.compress(b"user,text\n" + b"u,some text\n" * 100)
    for name, content, text, words in (
        ("cut.csv.gz", complete[:-20], TextFormat(), r"cut\.csv\.gz: not a complete gzip file"),
        ("no.jsonl.gz", b'{"user": 1}', TextFormat(), r"no\.jsonl\.gz: not a complete gzip file"),
        (
            "latin.csv",
            "user,text\né,é\n".encode("latin-1"),
            TextFormat(),
            r"in the first lines: not UTF-8 .* --encoding",
        ),
        ("late.csv", b"user,text\n" + b"u,x\n" * 9000 + b"\xe9,\n", TextFormat(), r"soon after row \d+: not UTF-8"),
        ("latin.jsonl", b'{"user": "\xe9"}', TextFormat(), r"line 1: invalid JSON .* --encoding"),
        (
            "cut.json.gz",
            gzip.compress(b'[{"user": 1}, {"user": 2}]' * 99)[:-20],
            TextFormat(),
            "not a complete gzip file",
        ),
        (
            "broken.json.gz",
            gzip.compress(b'[{"user": 1}, '),
            TextFormat(),
            r"broken\.json\.gz: truncated JSON",
        ),
        (
            "texts.json.gz",
            gzip.compress(b'["user"]'),
            TextFormat(),
            r"texts\.json\.gz, record 0, .*: expected an object",
        ),
        (
            "list.jsonl",
            b'[{"user": 1}]',
            TextFormat(),
            r"line 1: each line must be an object; .* in a file named \.json",
        ),
        ("not.json", b'[{"user": "\xff"}]', TextFormat("ascii"), r"not\.json, in the first rows: not ascii"),
        ("not.jsonl", b'{"user": 1}\n' * 9999 + b"\xff", TextFormat("ascii"), r"soon after row \d+: not ascii"),
        ("raw.csv", b'"0","u","x"\n"0","v","y"\n', TextFormat(), r"two columns have the same name, among 0, u, x|"),
        (
            "twice.csv",
            b"u,u,x\n",
            TextFormat(),
            r"two columns have the same name, .*; a file without a header needs --columns",
        ),
        ("a.jsonl", b'{"user": 1}', TextFormat(names=("user",)), r"--columns is for csv and tsv files"),
    ):
        (tmp_path / name).write_bytes(content)
        if words.endswith("|"):
            continue
        with pytest.raises(LampError, match=words):
            list(read_rows(tmp_path / name, columns_of(tmp_path / name, text), text))


def test_a_parquet_file_with_damaged_rows_is_named(tmp_path):
    pq.write_table(pa.table({"user": ["u"], "text": ["x" * 99]}), tmp_path / "a.parquet", compression="snappy")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[20:60] = b"\xff" * 40
    (tmp_path / "a.parquet").write_bytes(content)
    assert columns_of(tmp_path / "a.parquet") == ("user", "text")
    with pytest.raises(LampError, match=r"a\.parquet: not a complete parquet file"):
        list(read_rows(tmp_path / "a.parquet", ["user", "text"]))


def build(tmp_path: Path, rows: list[dict], **changes) -> tuple[dict, list[dict]]:
    """The report, and all questions."""
    path, output = tmp_path / "rows.jsonl", tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    path.write_text("\n".join(map(json.dumps, rows)))
    options = Build(str(path), "LaMP-3", output=str(output), work=Work(workers=1))
    run(replace(options, **changes))
    questions = [one for file in sorted(output.glob("*_questions.json")) for one in json.loads(file.read_text())]
    return json.loads((output / "report.json").read_text()), questions


def row(place: int, **changes) -> dict:
    return {"user": "u", "date": f"2020-01-{place:02}", "text": f"review number {place}", "score": "3", **changes}


def test_equal_rows_are_dropped_and_counted_or_kept(tmp_path, capsys):
    rows = [row(1), row(2), row(3), row(4), row(4), row(2, date="2020-02-02"), row(3, score="4")]
    report, questions = build(tmp_path, rows)
    assert report["duplicates"] == {"equal": 1, "dropped": 1, "at_another_date": 1}
    assert "duplicates 1 rows equal to another of their user (dropped); 1 but for the date" in capsys.readouterr().out
    for question in questions:
        own = question["input"].partition("review: ")[2]
        same = [item for item in question["profile"] if item["text"] == own]
        assert all(item["date"] != "2020-01-04" for item in same)
    report, kept = build(tmp_path, rows, duplicates="keep")
    assert report["duplicates"] == {"equal": 1, "dropped": 0, "at_another_date": 1}
    assert sum(len(one["profile"]) for one in kept) > sum(len(one["profile"]) for one in questions)


SAME_MOMENTS = [
    ("2009-04-01 00:00", "2009-04-01T00:00:00"),
    ("2009-04-01", " 2009-04-01 "),
    ("2009-04-01", "2009-04-01 00:00:00.000"),
    ("2009-04-01", "April 1, 2009"),
    ("2009-04-01", "2009/4/1 0:00"),
    ("2009-04-01T05:00:00Z", "Tue, 31 Mar 2009 22:00:00 -07:00"),
    ("2009-04-01T05:00:00Z", "2009-04-01T07:00+02:00"),
    ("2009-04-01T05:00:00Z", "Tue Mar 31 22:00:00 PDT 2009"),
    ("2009-04-01T05:00:00", "1238562000"),
    ("1238562000000", "1238562000"),
    ("2009", "2009-00-00"),
    ("2009-04", "2009-4"),
]


@pytest.mark.parametrize(("first", "second"), SAME_MOMENTS)
@pytest.mark.parametrize("turned", [False, True])
def test_rows_with_the_same_time_in_any_notation_are_equal(tmp_path, first, second, turned):
    dates = (second, first) if turned else (first, second)
    rows = [row(1, date="2001"), *(row(2, date=date, text="the asked text") for date in dates)]
    report, questions = build(tmp_path, rows)
    assert report["duplicates"] == {"equal": 1, "dropped": 1, "at_another_date": 0}
    assert [[item["text"] for item in question["profile"]] for question in questions] == [["review number 1"]]
    report, _ = build(tmp_path, rows, duplicates="keep")
    assert report["duplicates"] == {"equal": 1, "dropped": 0, "at_another_date": 0}


@pytest.mark.parametrize("text", ["the asked text ", "\tthe  asked\u00a0text\r\n"])
def test_rows_that_differ_in_white_space_are_equal_and_the_first_is_kept(tmp_path, text):
    rows = [row(1), row(2, text="the asked text", score=3), row(2, text=text, score="3.0 ")]
    report, (question,) = build(tmp_path, rows)
    assert report["duplicates"]["dropped"] == 1
    assert question["input"].endswith("the asked text")
    assert len(question["profile"]) == 1
    report, _ = build(tmp_path, [*rows, row(3, text=text)])
    assert report["duplicates"] == {"equal": 1, "dropped": 1, "at_another_date": 1}


def test_rows_with_another_time_score_or_text_are_not_equal(tmp_path):
    other = [{"date": "2020-01-02T00:00:01"}, {"date": "2020-01-02T00:00:00+01:00"}, {"score": "4"}, {"text": "Text"}]
    report, _ = build(tmp_path, [row(1), row(2, text="text"), *(row(2, **{"text": "text", **one}) for one in other)])
    assert report["duplicates"] == {"equal": 0, "dropped": 0, "at_another_date": 2}


def test_dropping_equal_rows_keeps_the_file_order_of_rows_of_one_day(tmp_path):
    rows = [row(1, text=text) for text in ("a", "b", "a", "c")] + [row(2)]
    _, (question,) = build(tmp_path, rows, split="user", dev_share=0.0, test_share=0.0)
    assert [item["text"] for item in question["profile"]] == ["a", "b", "c"]


def test_optional_dates_are_left_out_where_a_date_is_invalid(tmp_path, capsys):
    rows = [row(1), row(2, date="next May"), row(3, date="01/02/2003"), row(4), row(5)]
    rows += [row(place, user="v") for place in range(1, 4)]
    report, questions = build(tmp_path, rows, split="user", targets="random", dev_share=0.0, test_share=0.0)
    assert report["dates_dropped"] == {"count": 2, "first_rows": [2, 3]}
    assert "2 cannot be read, and all dates of their users are left out" in capsys.readouterr().out
    dated = {question["user_id"]: {"date" in item for item in question["profile"]} for question in questions}
    assert dated == {"u": {False}, "v": {True}}
    with pytest.raises(LampError, match=r"rows\.jsonl: the date '01/02/2003': its day and month are ambiguous"):
        build(tmp_path, rows)


def test_a_key_without_a_matching_row_is_named(tmp_path):
    (tmp_path / "movies.csv").write_text("movie,title\n1.0,Film\n2.0,Other\n")
    rows = [{**row(place), "movie": 1} for place in range(1, 4)]
    with pytest.raises(LampError, match=r"no partner in movies\.csv: 3 .*movie '1', the table has '1\.0' and others"):
        build(tmp_path, rows, join=(f"{tmp_path}/movies.csv:movie",))
