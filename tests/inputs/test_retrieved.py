"""Questions with the items of their prompts, read in pieces: equal to what retrievers take of the complete file."""

import pytest

from lamp_jax.config import Prompting, Work
from lamp_jax.data import chunks
from lamp_jax.data.files import read_questions
from lamp_jax.datasets.synthetic import write_benchmark
from lamp_jax.errors import LampError
from lamp_jax.inputs.generator import retrieved_items
from lamp_jax.inputs.retrieved import read_retrieved
from lamp_jax.retrieval.rankers import RETRIEVERS
from lamp_jax.settings import PromptSettings
from lamp_jax.tasks.catalog import find_task

TASK = find_task("LaMP-3")


@pytest.fixture
def path(tmp_path, monkeypatch):
    """30 questions in many chunks."""
    monkeypatch.setattr(chunks, "_CHUNK_BYTES", 2**13)
    write_benchmark(TASK, tmp_path, questions=30, dev_questions=5, profile_size=6, seed=0)
    return tmp_path / "train_questions.json"


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("retriever", RETRIEVERS)
def test_profiles_are_the_retrieved_items_of_the_complete_file(path, retriever, count):
    options = PromptSettings(prompting=Prompting(num_retrieved=count))
    complete = read_questions(path, task=TASK)
    found = read_retrieved(path, TASK, options, retriever=retriever)
    items = list(retrieved_items(complete, TASK, options, retriever=retriever))
    assert [list(question.profile) for question in found] == [list(some) for some in items]
    assert [(one.id, one.input) for one in found] == [(one.id, one.input) for one in complete]
    assert list(retrieved_items(found, TASK, options, retriever="file")) == [tuple(some) for some in items]


def test_the_first_items_are_those_of_the_complete_file(path):
    complete = read_questions(path, task=TASK)
    assert [one.profile for one in chunks.stream_first_items(path, 2, task=TASK, work=Work())] == [
        one.profile[:2] for one in complete
    ]


def test_an_id_that_occurs_twice_and_a_missing_date_are_named(path):
    content = path.read_text()
    path.write_text(content.replace('"id": "201"', '"id": "200"', 1))
    with pytest.raises(LampError, match="'200': this id occurs twice"):
        list(chunks.stream_first_items(path, 1, task=TASK, work=Work()))
    path.write_text(content.replace('"date"', '"day"'))
    with pytest.raises(LampError, match=r"train_questions\.json: question '200': no profile item has a 'date'"):
        read_retrieved(path, TASK, PromptSettings(), retriever="recency")
