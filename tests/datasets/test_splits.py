"""Targets and profiles of each split, by time and by user: no profile has items after the target."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_jax.data.files import read_outputs, stream_questions
from lamp_jax.data.layout import PARTS
from lamp_jax.datasets.histories import History, HistoryEntry
from lamp_jax.datasets.splits import QuestionMaker, SplitCounts, find_targets, part_of
from lamp_jax.errors import LampError
from lamp_jax.options import Build
from lamp_jax.stages.build import run
from lamp_jax.tasks.catalog import TASKS, find_task

TIME = Build("", "LaMP-3", output="")
USER = replace(TIME, split="user")


def history(count: int, *, user="u", mute=()) -> History:
    """History of a user; items in `mute` cannot be targets."""
    entries = [
        HistoryEntry((place,), {"text": f"t{place}"}, {"input": "" if place in mute else "x"}) for place in range(count)
    ]
    return History(user, entries)


def places_of(targets) -> list[tuple]:
    return [(target.part, target.position, list(target.profile)) for target in targets]


def test_the_targets_of_the_time_split_are_the_last_items():
    assert places_of(find_targets(history(5), replace(TIME, targets_per_user=2))) == [
        ("train", 1, [0]),
        ("train", 2, [0, 1]),
        ("dev", 3, [0, 1, 2]),
        ("test", 4, [0, 1, 2, 3]),
    ]
    assert places_of(find_targets(history(2), TIME)) == [("dev", 0, []), ("test", 1, [0])]
    assert places_of(find_targets(history(1), TIME)) == [("test", 0, [])]
    assert find_targets(history(0), TIME) == []


def test_a_profile_is_the_items_just_before_the_target():
    targets = find_targets(history(9), replace(TIME, max_profile=2))
    assert places_of(targets) == [("train", 6, [4, 5]), ("dev", 7, [5, 6]), ("test", 8, [6, 7])]


def test_items_that_cannot_be_targets_are_only_in_profiles():
    targets = find_targets(history(6, mute={1, 3, 5}), TIME)
    assert places_of(targets) == [("train", 0, []), ("dev", 2, [0, 1]), ("test", 4, [0, 1, 2, 3])]
    assert find_targets(history(3, mute={0, 1, 2}), replace(USER, targets="random")) == []


def test_the_target_of_the_user_split_is_the_newest_item():
    one, two = find_targets(history(5), replace(USER, targets_per_user=2))
    assert (one.position, list(one.profile)) == (3, [0, 1, 2])
    assert (two.position, list(two.profile)) == (4, [0, 1, 2, 3])
    assert one.part == two.part == part_of("u", USER)


def test_random_targets_have_all_other_items_as_profile():
    options = replace(USER, targets="random", targets_per_user=3)
    drawn = {}
    for user in range(200):
        targets = find_targets(history(6, user=user), options)
        drawn[user] = [target.position for target in targets]
        assert drawn[user] == sorted(set(drawn[user]))
        assert len(drawn[user]) == 3
        for target in targets:
            assert list(target.profile) == [place for place in range(6) if place != target.position]
    counts = Counter(place for found in drawn.values() for place in found)
    assert all(60 < counts[place] < 140 for place in range(6))
    assert drawn != {
        user: [t.position for t in find_targets(history(6, user=user), replace(options, seed=1))] for user in drawn
    }
    newest = find_targets(history(6), replace(options, targets_per_user=6, max_profile=2))
    assert [list(target.profile) for target in newest] == [[4, 5]] * 4 + [[3, 5], [3, 4]]


def test_the_splits_have_their_shares_of_the_users():
    options = replace(USER, dev_share=0.2, test_share=0.3)
    counts = Counter(part_of(f"user {number}", options) for number in range(4000))
    assert counts["dev"] == pytest.approx(800, abs=80)
    assert counts["test"] == pytest.approx(1200, abs=90)
    assert {part_of(user, replace(USER, dev_share=0, test_share=0)) for user in range(50)} == {"train"}
    assert {part_of(user, replace(USER, dev_share=0.4, test_share=0.6)) for user in range(50)} == {"dev", "test"}
    assert [part_of(user, options) for user in range(50)] != [
        part_of(user, replace(options, seed=1)) for user in range(50)
    ]


def test_surveys_can_be_summed():
    one, two = SplitCounts(), SplitCounts()
    one.sizes["dev"][3], two.sizes["dev"][3], two.sizes["test"][1] = 2, 1, 1
    one.idle_users["x"], two.dropped_targets["y"] = 1, 2
    total = SplitCounts.total([one, two])
    assert total.questions == {"train": 0, "dev": 3, "test": 1}
    assert (total.profile_items, total.idle_users, total.dropped_targets) == (10, {"x": 1}, {"y": 2})
    assert one.questions["dev"] == 2


def papers(*references: str) -> History:
    entries = [
        HistoryEntry((place,), {"title": f"title {place}", "abstract": "about"}, {"reference": reference})
        for place, reference in enumerate(references)
    ]
    return History("author", entries)


def test_the_wrong_reference_is_never_cited_by_the_user():
    task, author = find_task("LaMP-1"), papers("", "a", "b", "c")
    golds = Counter()
    for seed in range(200):
        asker = QuestionMaker(task, author, ["c", "x", "b", "y", "a"], seed)
        question = asker.ask(find_targets(author, TIME)[-1], number=17)
        pair = question.input.split('"')[3:6:2]
        wrong = pair[question.output == "[1]"]
        assert wrong in {"x", "y"}
        assert set(pair) == {"c", wrong}
        assert question.input == task.template.format(title="title 3", ref1=pair[0], ref2=pair[1])
        golds[question.output, wrong] += 1
    assert len(golds) == 4
    assert min(golds.values()) > 20
    assert question.id == "0217"
    assert question.profile[2] == {"id": "02172", "title": "title 2", "abstract": "about"}


def test_no_wrong_reference_is_an_error_that_names_the_user():
    author = papers("a", "b")
    with pytest.raises(LampError, match=r"user 'author': cites all the papers"):
        QuestionMaker(find_task("LaMP-1"), author, ["a", "b"], 0).ask(find_targets(author, TIME)[-1], number=0)


def test_ids_begin_with_the_task_and_the_split():
    for task in TASKS.values():
        assert int(task.id_prefix) == int(task.name.split("-")[1]) - 1
    asker = QuestionMaker(find_task("LaMP-7"), history(3), (), 0)
    train, dev, test = (asker.ask(target, number=5) for target in find_targets(history(3), TIME))
    assert (train.id, dev.id, test.id) == ("605", "615", "625")
    assert [item["id"] for item in test.profile] == ["6250", "6251"]


ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.dates().map(str) | st.sampled_from(["2000", "2000-05", "2000-05-03"])),
    min_size=2,
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(1, 4), st.integers(0, 3), st.integers(0, 2))
def test_no_profile_has_items_after_its_question(rows, targets, least, more):
    """Checked only from the files: texts are unique, so a question's text identifies its row."""
    options = replace(TIME, targets_per_user=targets, min_profile=least, max_profile=(least + more) * (more > 0))
    with TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        named = [
            {"user": user, "text": f"row {number}", "score": 1, "date": date}
            for number, (user, date) in enumerate(rows)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in named))
        options = replace(options, histories=str(path), output=f"{folder}/out")
        if max(Counter(user for user, _ in rows).values()) <= least:
            with pytest.raises(LampError, match="yields no question"):
                run(options)
            return
        run(options)
        check_times(Path(folder, "out"), {row["text"]: (number, row) for number, row in enumerate(named)}, options)


def check_times(folder: Path, by_text: dict, options: Build) -> None:
    task, asked = find_task("LaMP-3"), {}
    for part in PARTS:
        if not (path := folder / f"{part}_questions.json").exists():
            continue
        golds = read_outputs(folder / f"{part}_outputs.json").by_id
        for number, question in enumerate(stream_questions(path, task=task)):
            assert question.id == f"2{PARTS.index(part)}{number}"
            assert golds[question.id] == "1"
            target, row = by_text[task.query(question.input)]
            asked.setdefault(row["user"], []).append((part, when(row), target))
            assert options.min_profile <= len(question.profile) <= (options.max_profile or 99)
            for item in question.profile:
                place, other = by_text[item["text"]]
                assert other["user"] == row["user"] == question.user_id
                assert (when(other), place) < (when(row), target)
    for found in asked.values():
        # Train before dev before test, and each item is a target once.
        assert [key for _, *key in found] == sorted(key for _, *key in found)
        assert len({target for *_, target in found}) == len(found)
        assert [part for part, *_ in found] == sorted((part for part, *_ in found), key=PARTS.index)


def when(row: dict) -> tuple[int, ...]:
    return tuple(map(int, row["date"].split("-")))
