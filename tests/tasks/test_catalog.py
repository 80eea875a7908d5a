"""Table of tasks: inputs and profile items of real files."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.errors import LampError
from lamp_jax.tasks.catalog import TASKS, MissingMarker, Task, find_task, last_named

CITATION = find_task("LaMP-1")
WITH_TEXT = [task for task in TASKS.values() if task is not CITATION]
ANY_TASK = st.sampled_from(list(TASKS.values()))


def citation(title: str, ref1: str, ref2: str) -> str:
    return CITATION.template.format(title=title, ref1=ref1, ref2=ref2)


@pytest.mark.parametrize("name", ["LaMP-3", "LaMP_3", "lamp_3", "lamp-3"])
def test_a_task_is_found_by_both_spellings(name):
    assert find_task(name).name == "LaMP-3"


def test_the_deprecated_news_task_is_found():
    assert find_task("LaMP_2_old") is find_task("LaMP-2-old")
    assert find_task("LaMP-2-old").official_name == find_task("LaMP-2").official_name == "LaMP_2"


def test_the_error_about_an_unknown_task_lists_all_tasks():
    with pytest.raises(LampError, match="unknown task 'LaMP-9': choose one of LaMP-1, LaMP-2, LaMP-2-old, LaMP-3"):
        find_task("LaMP-9")


@given(st.sampled_from(WITH_TEXT), st.text())
def test_the_query_is_the_text_that_was_put_into_the_input(task: Task, text: str):
    assert task.query(task.input_for(text)) == text
    assert task.instruction(task.input_for(text)) + " " + text == task.input_for(text)


TITLES = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"[]12: ')).filter(
    lambda t: '" [2]: ' not in t
)


@given(TITLES, TITLES, TITLES)
def test_the_query_of_lamp1_is_both_references_with_any_quotes(title: str, ref1: str, ref2: str):
    assert CITATION.query(citation(title, ref1, ref2)) == f"{ref1} {ref2}"


@given(*[st.text(st.characters(exclude_characters='"'))] * 3)
def test_both_queries_of_lamp1_are_equal_without_nested_quotes(title: str, ref1: str, ref2: str):
    question = citation(title, ref1, ref2)
    assert CITATION.query(question, reference=True) == CITATION.query(question)


def test_nested_quotes_shift_the_public_codes_query():
    question = citation('A "great" title', "Ref one", "Ref two")
    assert CITATION.query(question) == "Ref one Ref two"
    assert CITATION.query(question, reference=True) == " title Ref one"


def test_a_title_may_hold_a_references_delimiter():
    assert CITATION.query(citation('On [1]: "x"', "Ref [2]: one", 'Ref "two"')) == 'Ref [2]: one Ref "two"'


def test_an_unclosed_string_is_not_a_reference():
    with pytest.raises(MissingMarker) as error:
        CITATION.query('title "a", [1]: "b" [2]: "c', reference=True)
    assert error.value.text.endswith('[1]: "..." [2]: "..."')


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_bare_text_has_no_query(task: Task, reference: bool):
    with pytest.raises(MissingMarker, match=f"{task.name}: the input has no .*A young man wakes up"):
        task.query("A young man wakes up", reference=reference)
    assert task.instruction("A young man wakes up") == ""


def test_the_delimiter_inside_a_review_does_not_split_it():
    review = "Good. review: bad. description: none."
    assert find_task("LaMP-3").query(find_task("LaMP-3").input_for(review)) == review


def test_documents_are_the_fields_that_a_retriever_reads():
    item = {"title": "T\x85", "abstract": "", "text": "B\nC", "description": "D", "date": "2020-01-02", "tag": "x"}
    documents = {name: task.document_of(item) for name, task in TASKS.items()}
    assert documents == {
        "LaMP-1": "T\x85 ",
        "LaMP-2": "D",
        "LaMP-2-old": "T\x85 B\nC",
        "LaMP-3": "B\nC",
        "LaMP-4": "T\x85 B\nC",
        "LaMP-5": "T\x85 ",
        "LaMP-6": "B\nC",
        "LaMP-7": "B\nC",
    }
    assert find_task("LaMP-2").document_of(item, use_date=True) == "D date: 2020-01-02"


def test_fields_are_all_item_fields_that_a_task_reads():
    assert {name: set(task.fields) for name, task in TASKS.items()} == {
        "LaMP-1": {"title", "abstract"},
        "LaMP-2": {"description", "tag"},
        "LaMP-2-old": {"text", "title", "category"},
        "LaMP-3": {"text", "score"},
        "LaMP-4": {"title", "text"},
        "LaMP-5": {"title", "abstract"},
        "LaMP-6": {"text", "title"},
        "LaMP-7": {"text"},
    }


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_row_is_consistent(task: Task):
    phrase = task.prompt.item
    values = dict.fromkeys(task.fields, "{brace}")
    assert "{brace}" in phrase.template.format_map(values)
    assert f"{{{phrase.cut}}}" in phrase.template
    assert isinstance(phrase.measured, int) or f"{{{phrase.cut}}}" not in phrase.measured
    assert task.marker in task.template
    assert len(set(task.labels)) == len(task.labels)
    assert task.higher_is_better == (task.name != "LaMP-3")


def row(name: str) -> Task:
    return replace(find_task("LaMP-3"), name=name, folder="", id_prefix="")


@pytest.mark.parametrize("name", ["Recipes", "recipes", "My_Notes", "my-notes"])
def test_a_task_may_have_any_name(name: str, monkeypatch):
    for one in ("Recipes", "My_Notes"):
        monkeypatch.setitem(TASKS, one, row(one))
    task = find_task(name)
    assert task.name.lower().replace("_", "-") == name.lower().replace("_", "-")
    assert task.tree_folder == task.official_name == task.name


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("/data/LaMP_3/dev.json LaMP-4", ["LaMP-4"]),
        ("/data/LaMP_2/dev.json", ["LaMP-2", "LaMP-2-old"]),
        ("/data/LaMP_33/dev.json", []),
        ("/LaMP_3/Recipes_dev.json", ["Recipes"]),
        ("/LaMP_3/Recipesque.json", ["LaMP-3"]),
        ("nothing", []),
    ],
)
def test_the_last_task_named_in_a_text_is_returned(text: str, names: list[str], monkeypatch):
    monkeypatch.setitem(TASKS, "Recipes", row("Recipes"))
    assert [task.name for task in last_named(text)] == names
