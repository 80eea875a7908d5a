"""Records of a JSON file by byte offset, for any contents, and the position of errors."""

import contextlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.errors import LampError
from lamp_jax.runs import json_records
from lamp_jax.runs.json_records import RecordScanner, parse_record

TRICKY = st.text(st.sampled_from('"\\[]{},: \n\u0085\ud83dé'), max_size=8)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | TRICKY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TRICKY, inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.lists(st.dictionaries(TRICKY, VALUE, max_size=4), max_size=6)
SPACING = st.sampled_from(("", " ", "\n", "\r\n ", "\t" * 70))


def encoded(value, *, ascii_only: bool) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


@given(RECORDS, st.booleans(), st.booleans(), SPACING, st.integers(1, 40))
def test_records_are_the_same_for_any_block_size(tmp_path_factory, records, wrapped, ascii_only, space, block):
    gap = (space + "," + space).encode()
    body = gap.join(encoded(record, ascii_only=ascii_only) for record in records)
    complete = space.encode() + b"[" + space.encode() + body + space.encode() + b"]" + space.encode()
    if wrapped:
        complete = b'{"task": "[LaMP_3", "golds":' + complete + b', "more": 1}'
    path = tmp_path_factory.mktemp("frame") / "whole.json"
    path.write_bytes(complete)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_records, "_BLOCK", block)
        scanner = RecordScanner(path)
        found = list(scanner)
    assert [parse_record(raw.content) for raw in found] == records
    assert all(complete[raw.offset :].startswith(raw.content) for raw in found)
    assert [raw.number for raw in found] == list(range(len(records)))
    assert scanner.envelope == ({"task": "[LaMP_3", "golds": [], "more": 1} if wrapped else [])


@given(RECORDS.filter(bool), st.data())
def test_a_file_truncated_at_any_byte_is_named(tmp_path_factory, records, data):
    complete = encoded(records, ascii_only=False)
    path = tmp_path_factory.mktemp("cut") / "cut.json"
    path.write_bytes(complete[: data.draw(st.integers(0, len(complete) - 1))])
    with pytest.raises(LampError, match=r"cut\.json"):
        list(RecordScanner(path))


@given(st.binary(max_size=60))
def test_any_bytes_are_records_or_a_lamp_error(tmp_path_factory, junk):
    path = tmp_path_factory.mktemp("junk") / "junk.json"
    path.write_bytes(b"[{" + junk)
    with contextlib.suppress(LampError):  # and no other
        assert list(RecordScanner(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'[{"a": 1} {"a": 2}]', r"record 1, byte 9: expected an object after a comma"),
        (b'[{"a": 1}, 7, {"a": 2}]', r"record 1, byte 9: .*found '7'"),
        (b'[{"a": 1}, "x"]', r"record 1, byte 9: .*found '\"x\"'"),
        (b'[{"a": 1},]', r"record 1, byte 9"),
        (b'[,{"a": 1}]', r"record 0, byte 1"),
        (b'[{"a": 1}] [', "does something follow the list"),
        (b'[{"a": "}', "truncated JSON, which ends after 0 complete records, at byte 9"),
        (b'{"1": ["10", "11"]}', "an object whose first list is not 'golds'"),
        (b'{"a": {"b": []}}', "an object whose first list is not 'golds'"),
        (b"{}", "an object whose first list is not 'golds'"),
        ('[{"a": 1}]'.encode("utf-16"), "is the file UTF-16"),
        ('[{"a": 1}]'.encode("utf-16-le"), "is the file UTF-16"),
        (b"", "neither a JSON list nor an object"),
        (b"<!DOCTYPE html>", "neither a JSON list nor an object"),
    ],
)
def test_a_file_without_a_list_of_records_is_named(tmp_path, content, words):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(LampError, match=re.escape(str(path)) + ".*" + words):
        list(RecordScanner(path))


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "bom.json"
    path.write_bytes(b'\xef\xbb\xbf\n[{"a": 1}]')
    assert list(RecordScanner(path)) == [(0, 5, b'{"a": 1}')]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": 1e400}', "1e400 is too large for a floating-point number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "5000 digits"),
        (b'{"a": "\xe9"}', "not UTF-8 at byte 7"),
        (b'{"a" 1}', "at character 5"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_invalid_json_is_named(raw, words):
    with pytest.raises(ValueError, match=words):
        parse_record(raw)


@pytest.mark.parametrize(("depth", "fits"), [(98, True), (99, False), (1000, False), (100_000, False)])
@pytest.mark.parametrize("block", [50, 2**22])
def test_a_record_nested_too_deeply_to_be_written_is_named(tmp_path, monkeypatch, depth, fits, block):
    monkeypatch.setattr(json_records, "_BLOCK", block)
    path = tmp_path / "deep.json"
    path.write_bytes(b'[{"a": 1}, {"a": ' + b"[" * depth + b"]" * depth + b'}, {"a": 2}]')
    if fits:
        assert len(list(RecordScanner(path))) == 3
    else:
        with pytest.raises(LampError, match=r"deep\.json, near byte \d+: nested more than 100 deep"):
            list(RecordScanner(path))


def test_lone_surrogates_are_kept():
    assert parse_record(b'{"a": "\\ud83d"}') == parse_record(b'{"a": "\xed\xa0\xbd"}') == {"a": "\ud83d"}
