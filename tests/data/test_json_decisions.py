"""JSON that parsers read differently: the same decision in every reader and in `lamp check`."""

import json
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.config import Work
from lamp_jax.data.files import is_id, read_outputs, read_questions
from lamp_jax.datasets.checking import check_file
from lamp_jax.errors import LampError
from lamp_jax.retrieval.ranking import RankingFile
from lamp_jax.runs.json_files import read_json
from lamp_jax.runs.json_records import parse_record
from lamp_jax.stages import evaluate
from lamp_jax.tasks.catalog import find_task

TASK = find_task("LaMP-4")
ASKED = json.dumps(TASK.input_for("x"))
IDS = {"true": False, "false": False, "1.0": False, "null": False, "[]": False, '{"a": 1}': False, "1e400": False}
IDS |= {"1": True, "-1": True, '"1"': True, '"true"': True, '""': True, '"é"': True, '"\\ud83d\\ude00"': True}
IDS |= {'"\\ud83d"': False, '"a\\udc00b"': False, "123456789012345678901234567890": False, "18446744073709551615": True}


def question(**values: str) -> str:
    fields = {"id": '"q"', "input": ASKED, "user_id": '"u"', "item": '"1"', "output": '"y"', **values}
    profile = f'[{{"id": {fields.pop("item")}, "text": "a", "title": "b"}}]'
    return f"[{members({**fields, 'profile': profile})}]"


def members(fields: dict[str, str]) -> str:
    return "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"


def outputs(**values: str) -> str:
    fields = {"id": '"q"', "output": '"y"', **values}
    return f"[{members(fields)}]"


def is_read(read, path) -> bool:
    try:
        read(path)
    except LampError as error:
        if path.name not in str(error):
            raise
        return False
    return True


def passes(path) -> bool:
    return not check_file(path, task=TASK, work=Work(workers=1)).errors


@pytest.mark.parametrize(("value", "fits"), IDS.items())
@pytest.mark.parametrize("field", ["id", "user_id", "item"])
def test_an_id_is_a_text_or_an_integer(tmp_path, field, value, fits):
    path = tmp_path / "questions.json"
    path.write_text(question(**{field: value}))
    fits = fits or (field == "user_id" and value == "null")
    assert is_read(lambda path: read_questions(path, task=TASK), path) == fits
    # `lamp check` also warns of numbers of 64 bits and more.
    assert passes(path) == fits


@pytest.mark.parametrize(("value", "fits"), IDS.items())
def test_an_id_is_the_same_in_outputs_rankings_and_zips(tmp_path, value, fits):
    path, ranking = tmp_path / "outputs.json", tmp_path / "ranking.json"
    path.write_text(outputs(id=value))
    assert is_read(read_outputs, path) == passes(path) == fits
    ranking.write_text(members({"q": f"[{value}]"}))
    assert is_read(lambda path: RankingFile(path)["q"], ranking) == fits
    assert passes(ranking) == fits
    with zipfile.ZipFile(tmp_path / "outputs.zip", "w") as archive:
        archive.writestr("a.json", members({"task": '"LaMP_4"', "golds": outputs(id=value)}))
    assert is_read(evaluate._read_zip, tmp_path / "outputs.zip") == fits


OUTPUTS = {"[]": False, '["a"]': False, '{"text": "a"}': False, "true": False, "null": False, "1": True, "1.5": True}


@pytest.mark.parametrize(("value", "fits"), {**OUTPUTS, '"a"': True, '""': True}.items())
def test_an_output_is_a_text_or_a_number(tmp_path, value, fits):
    path, asked = tmp_path / "outputs.json", tmp_path / "questions.json"
    path.write_text(outputs(output=value))
    assert is_read(read_outputs, path) == passes(path) == fits
    if not fits and value != "null":
        with pytest.raises(LampError, match="id 'q': 'output' must be a text or a number"):
            read_outputs(path)
    asked.write_text(question(output=value))
    assert is_read(read_questions, asked) == passes(asked) == (fits or value == "null")


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": [{"b": 1, "b" : 1}]}', '{"\\u0061": 1, "a"  :2}'])
def test_duplicate_keys_are_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"the key '[ab]' occurs twice"):
        parse_record(text.encode())
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(LampError, match=r"a\.json.*occurs twice"):
        read_json(tmp_path / "a.json")
    (tmp_path / "questions.json").write_text(question(id=f'"q", "x": {text}'))
    assert not is_read(read_questions, tmp_path / "questions.json")
    assert not passes(tmp_path / "questions.json")


KEYS = st.text('ab":\\ ', max_size=2)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text('a":\\ {}[],\n'),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(st.tuples(st.text('ab":\\ ', max_size=2), inner), max_size=3).map(tuple)
    ),
    max_leaves=12,
)


def written(value, space: str) -> str:
    """JSON text in which a tuple is written as an object, which may repeat keys."""
    if isinstance(value, tuple):
        return "{" + ",".join(f"{json.dumps(key)}{space}:{written(one, space)}" for key, one in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(one, space) for one in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def has_duplicate_keys(value) -> bool:
    if isinstance(value, tuple):
        keys = [key for key, _ in value]
        return len(set(keys)) < len(keys) or any(has_duplicate_keys(one) for _, one in value)
    return isinstance(value, list) and any(map(has_duplicate_keys, value))


@given(VALUES, st.sampled_from(["", " ", "\n\t"]))
def test_duplicate_keys_are_detected_whatever_texts_contain(value, space):
    text = written(value, space)
    if has_duplicate_keys(value):
        with pytest.raises(ValueError, match="occurs twice"):
            parse_record(text.encode())
    else:
        assert parse_record(text.encode()) == json.loads(text)


@given(st.text(max_size=4))
def test_text_ids_must_be_encodable_as_utf_8(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        assert not is_id(text)
    else:
        assert is_id(text)
