"""Question sources with random access: equal to the complete files, in every process and in any order."""

import json
import pickle
import random
from pathlib import Path

import grain
import pytest
import tensorflow_datasets as tfds
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st

import lamp_jax.datasets.builder  # noqa: F401 (registers the data set)
from lamp_jax.data.files import Question, read_questions, write_questions
from lamp_jax.data.sources import JsonSource, LampSource, decode_question, encode_question, open_source
from lamp_jax.errors import LampError
from lamp_jax.tasks.catalog import find_task

TASK = find_task("LaMP-3")


def questions(count: int = 30) -> list[Question]:
    rows = []
    for number in range(count):
        items = [{"id": f"{number}{place}", "text": f"{place} é half \ud83d", "score": place} for place in range(4)]
        random.Random(number).shuffle(items)
        rows.append(Question(f"q{number}", f"review: {number}", tuple(items), number, str(number % 5)))
    return rows


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A directory with `train_questions.json` and, below `out`, the data sets of both splits prepared from it."""
    tree = tmp_path_factory.mktemp("tree")
    write_questions(tree / "train_questions.json", questions())
    for split in ("user", "time"):
        prepare(tree, tree / "out", f"lamp_3_{split}")
    return tree


def prepare(tree: Path, output: Path, config: str, **more) -> None:
    made = tfds.builder(f"lamp/{config}", data_dir=output, source=tree, **more)
    made.download_and_prepare(file_format="array_record", download_dir=output / "downloads")


@pytest.fixture(params=["json", "data set"])
def source(request, tree):
    return {
        "json": lambda: JsonSource(tree / "train_questions.json", TASK),
        "data set": lambda: LampSource(tree / "out/lamp/lamp_3_user/1.0.0", "train"),
    }[request.param]()


def test_questions_are_read_in_any_order(source):
    places = random.Random(0).choices(range(30), k=100)
    assert len(source) == 30
    assert [source[place] for place in places] == [questions()[place] for place in places]
    assert list(source) == questions()
    assert source[-1] == questions()[-1]
    for beyond in (30, -31):
        with pytest.raises(IndexError):
            source[beyond]


def test_a_source_can_be_pickled_before_and_after_reading(source):
    before = pickle.loads(pickle.dumps(source))
    assert source[3] == questions()[3]
    after = pickle.loads(pickle.dumps(source))
    assert before[3] == after[3] == source[3]
    assert len(pickle.dumps(source)) < 5000


def test_grain_workers_read_the_same_questions_in_order(tree):
    sources = [JsonSource(tree / "train_questions.json"), LampSource(tree / "out/lamp/lamp_3_time/1.0.0", "train")]
    if not flags.FLAGS.is_parsed():  # grain passes its flags to its workers
        flags.FLAGS.mark_as_parsed()
    zipped = grain.experimental.ZipMapDataset([grain.MapDataset.source(source) for source in sources])
    read = list(zipped.to_iter_dataset().mp_prefetch(grain.MultiprocessingOptions(num_workers=2)))
    assert read == [(question, question) for question in questions()]


def test_official_objects_are_read_like_lists(tmp_path):
    rows = [{"id": number, "input": "x", "profile": []} for number in range(3)]
    (tmp_path / "golds.json").write_text(json.dumps({"task": "LaMP_3", "golds": rows}, indent=2))
    assert list(JsonSource(tmp_path / "golds.json")) == read_questions(tmp_path / "golds.json")


def test_bad_files_are_named_on_opening_and_bad_records_on_reading(tmp_path):
    path = tmp_path / "bad.json"
    for content, words in (("[]", "no records"), ('[{"id": 1}', "truncated JSON"), ("<html>", "neither a JSON list")):
        path.write_text(content)
        with pytest.raises(LampError, match=rf"bad\.json.*{words}"):
            JsonSource(path)
    path.write_text('[{"id": "1", "input": "x", "profile": []}, {"id": "2", "input": 7, "profile": []}]')
    source = JsonSource(path)
    assert source[0].id == "1"
    with pytest.raises(LampError, match=r"bad\.json, record 1, byte 43: 'input' must be a text"):
        source[1]
    with pytest.raises(LampError, match="unknown patches"):
        JsonSource(path, patches=("none such",))
    path.write_text('[{"id": "1", "input": "x", "profile": [{"id": "7", "text": "a"}]}]')
    with pytest.raises(LampError, match="question '1', profile item '7': 'score'"):
        JsonSource(path, TASK)[0]


def test_a_file_and_a_split_of_a_data_set_are_opened_by_name(tree):
    assert isinstance(open_source(tree / "train_questions.json", TASK), JsonSource)
    part = open_source(tree / "out/lamp/lamp_3_time/1.0.0/train", TASK)
    assert isinstance(part, LampSource)
    assert list(part) == questions()


def test_the_only_data_set_of_a_task_is_opened_by_the_parent_directory(tree, tmp_path):
    prepare(tree, tmp_path, "lamp_3_user")
    assert list(open_source(tmp_path / "train", TASK)) == questions()
    with pytest.raises(LampError, match=r"several data sets of LaMP-3; .*lamp_3_user/1.0.0, .*lamp_3_time/1.0.0"):
        open_source(tree / "out/train", TASK)


def test_a_missing_split_or_wrong_data_set_is_named(tree):
    data = tree / "out/lamp/lamp_3_user/1.0.0"
    for path, task, patches, words in (
        (data / "dev", TASK, ("lamp2-dev-110",), "has no part 'dev'; there are train"),
        (data / "profiles", TASK, ("lamp2-dev-110",), "has no part 'profiles'"),
        (data / "train", find_task("LaMP-2"), ("lamp2-dev-110",), "a data set of LaMP-3, where LaMP-2"),
        (data / "train", TASK, (), "with the patches lamp2-dev-110, but the settings name none"),
        (tree / "none.json", TASK, (), r"none\.json: no such file"),
        (tree / "nowhere/train", TASK, (), "no such file"),
    ):
        with pytest.raises(LampError, match=words):
            open_source(path, task, patches)
    with pytest.raises(LampError, match="not a data set"):
        LampSource(tree, "train")


TEXT = st.text(st.characters(exclude_categories=[]))
ITEMS = st.lists(st.dictionaries(TEXT.map("x".__add__), TEXT | st.integers(-9, 9) | st.none(), max_size=3), max_size=5)


@settings(max_examples=50)
@given(ITEMS, st.randoms(use_true_random=False), st.none() | TEXT, st.none() | TEXT | st.integers(-9, 9))
def test_a_question_is_restored_unchanged_and_shares_its_profile_in_any_order(items, rng, output, user):
    first = Question("1", "x", tuple({"id": f"1{place}", **item} for place, item in enumerate(items)), user, output)
    rng.shuffle(items)
    other = Question("2", "y", tuple({"id": f"2{place}", **item} for place, item in enumerate(items)))
    assert encode_question(first).items == encode_question(other).items
    for question in (first, other):
        assert decode_question(*encode_question(question)) == question


def test_another_item_or_a_repeated_item_makes_another_profile():
    one, two = {"id": "1", "text": "a"}, {"id": "2", "text": "a"}
    profiles = [(), (one,), (one, two), ({"id": "1", "text": "b"},), ({"id": "1"},)]
    assert len({encode_question(Question("1", "", profile)).items for profile in profiles}) == len(profiles)
