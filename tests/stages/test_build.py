"""`lamp build`: the same benchmark from every format of the rows, complete or not at all, by any number of workers."""

import csv
import json
import random
from collections import Counter, defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lamp_jax.data.files import read_outputs, read_questions
from lamp_jax.data.layout import PARTS, find_parts
from lamp_jax.datasets import histories, splits
from lamp_jax.errors import LampError
from lamp_jax.options import Build, Work
from lamp_jax.runs import workers
from lamp_jax.stages.build import describe_sizes, run
from lamp_jax.tasks.catalog import find_task

REVIEWS = find_task("LaMP-3")


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.json"}


def read_splits(folder: Path, task: str = "LaMP-3") -> dict[str, list]:
    """Each split's questions, with the golds of its outputs file."""
    parts = {}
    for part, (questions, outputs) in find_parts(folder, find_task(task), "time").items():
        golds = read_outputs(outputs)
        assert golds.task == find_task(task).official_name
        parts[part] = [replace(q, output=golds.by_id[q.id]) for q in read_questions(questions, task=find_task(task))]
        assert len(golds.by_id) == len(parts[part])
    return parts


def rows_of(users: int, seed: int = 0, least: int = 1, most: int = 30) -> list[dict]:
    """Reviews of users with distinct days, in random order; their texts are unique."""
    rng = random.Random(seed)
    rows = []
    for user in range(users):
        for day in rng.sample(range(1, 366), rng.randint(least, most)):
            date = datetime.strptime(f"2020 {day}", "%Y %j").date().isoformat()
            rows.append(
                {"user": f"u{user}", "text": f"review {len(rows)}", "score": str(rng.randint(1, 5)), "date": date}
            )
    rng.shuffle(rows)
    return rows


def write_csv(path: Path, rows: list[dict]) -> str:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_parquet(path: Path, rows: list[dict]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


@pytest.fixture
def movielens(tmp_path):
    """Build options for ratings and movies in MovieLens' format; a few movies are missing in the movie table."""
    rng = random.Random(5)
    movies = [
        {"movieId": 7 * n, "title": f'"Film, The" {n} (19{n:02})', "genres": "|".join(rng.sample("ABCD", 1 + n % 3))}
        for n in range(60)
    ]
    ratings = [
        {
            "userId": user,
            "movieId": 7 * n,
            "rating": rng.randint(1, 10) / 2,
            "timestamp": rng.randrange(10**9, 10**9 + 10**6),
        }
        for user in range(1, 30)
        for n in rng.sample(range(62), rng.randint(5, 50))
    ]
    rng.shuffle(ratings)
    ratings[7]["timestamp"] = ratings[8]["timestamp"]
    return Build(
        histories=write_csv(tmp_path / "ratings.csv", ratings),
        task="LaMP-3",
        output=str(tmp_path / "out"),
        map=("user=userId", "date=timestamp", "score=rating", "text={title}. Genres: {genres|, }."),
        join=(f"{write_csv(tmp_path / 'movies.csv', movies)}:movieId",),
        date_form="seconds",
        round_scores="up",
        targets_per_user=12,
        min_profile=10,
        max_profile=20,
    )


def movielens_oracle(options: Build) -> dict[str, list[dict]]:
    """The questions of each split, with their golds, by an independent short implementation."""
    with open(options.join[0].rpartition(":")[0], newline="") as file:
        movies = {row["movieId"]: row for row in csv.DictReader(file)}
    users = defaultdict(list)
    with open(options.histories, newline="") as file:
        for row in csv.DictReader(file):
            rated = users[row["userId"]]
            if movie := movies.get(row["movieId"]):
                text = f"{movie['title']}. Genres: {', '.join(movie['genres'].split('|'))}."
                score = {
                    "0.5": 1,
                    "1.0": 1,
                    "1.5": 2,
                    "2.0": 2,
                    "2.5": 3,
                    "3.0": 3,
                    "3.5": 4,
                    "4.0": 4,
                    "4.5": 5,
                    "5.0": 5,
                }
                day = datetime.fromtimestamp(int(row["timestamp"]), UTC).strftime("%Y-%m-%d")
                rated.append((int(row["timestamp"]), {"text": text, "score": str(score[row["rating"]]), "date": day}))
    parts = {part: [] for part in PARTS}
    for user, rated in users.items():
        items = [item for _, item in sorted(rated, key=lambda pair: pair[0])]
        roles = {len(items) - 1: "test", len(items) - 2: "dev"}
        for place in range(max(10, len(items) - 14), len(items)):
            part = roles.get(place, "train")
            key = f"2{PARTS.index(part)}{len(parts[part])}"
            before = items[max(0, place - 20) : place]
            profile = tuple({"id": f"{key}{n}", **item} for n, item in enumerate(before))
            parts[part].append((key, REVIEWS.input_for(items[place]["text"]), profile, user, items[place]["score"]))
    return parts


def test_movielens_is_built_by_the_rules_of_the_readme(movielens, capsys):
    run(movielens)
    found, expected = read_splits(Path(movielens.output)), movielens_oracle(movielens)
    assert len(expected["train"]) > 100
    assert len(expected["dev"]) > 10
    assert len({question[0] for part in expected.values() for question in part}) == sum(map(len, expected.values()))
    for part, questions in found.items():
        assert [(q.id, q.input, q.profile, q.user_id, q.output) for q in questions] == expected[part]
    printed = capsys.readouterr().out
    assert f"train    {len(expected['train'])} questions; profiles: min 10, median " in printed
    assert "no partner in movies.csv" in printed


def test_the_report_accounts_for_every_row_user_and_target(movielens):
    run(movielens)
    report = json.loads((Path(movielens.output) / "report.json").read_text())
    expected = movielens_oracle(movielens)
    with open(movielens.histories, newline="") as file:
        rows = list(csv.DictReader(file))
    unknown = [number for number, row in enumerate(rows, 1) if int(row["movieId"]) >= 420]
    assert report["rows"] == {
        "read": len(rows),
        "kept": len(rows) - len(unknown),
        "dropped": {"no partner in movies.csv": {"count": len(unknown), "first_rows": unknown[:5]}},
    }
    asked = {user for part in expected.values() for *_, user, _ in part}
    assert report["users"] == {"seen": 29, "without_questions": {"too few items": 29 - len(asked)}}
    assert report["questions"] == {part: len(questions) for part, questions in expected.items()}
    assert list(report["targets_dropped"]) == ["fewer than 10 profile items"]
    sizes = sorted(len(profile) for _, _, profile, *_ in expected["train"])
    found = report["profile_sizes"]["train"]
    assert (found["min"], found["max"], found["mean"]) == (sizes[0], sizes[-1], sum(sizes) / len(sizes))
    assert report["settings"]["min_profile"] == 10
    assert "work" not in report["settings"]


def test_sizes_are_described_by_minimum_median_mean_and_maximum():
    assert describe_sizes(Counter([1, 1, 2, 9])) == {"min": 1, "median": 1.5, "mean": 3.25, "max": 9}
    assert describe_sizes(Counter([5, 3, 4]))["median"] == 4


@pytest.fixture
def reviews(tmp_path):
    """Build options for reviews by 40 users, and their rows."""
    rows = rows_of(40)
    return Build(
        write_jsonl(tmp_path / "rows.jsonl", rows), "LaMP-3", output=str(tmp_path / "out"), targets_per_user=2
    ), rows


def test_csv_jsonl_and_parquet_give_the_same_files(reviews, tmp_path):
    options, rows = reviews
    made = []
    for write, name in ((write_csv, "a.csv"), (write_jsonl, "a.jsonl"), (write_parquet, "a.parquet")):
        changed = replace(options, histories=write(tmp_path / name, rows), output=str(tmp_path / f"of {name}"))
        run(changed)
        made.append(read_files(Path(changed.output)))
        del made[-1]["report.json"]  # which names the file
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == 6


def test_several_workers_and_small_buckets_give_the_same_bytes(reviews, tmp_path, monkeypatch):
    options, _ = reviews
    run(options)
    monkeypatch.setattr(histories, "_BUCKET_USERS", 3)
    monkeypatch.setattr(histories, "_BUFFERED_BYTES", 1000)
    monkeypatch.setattr(workers, "_BYTES_WORTH_A_PROCESS", 100)
    for count in (1, 3):
        changed = replace(options, output=str(tmp_path / f"by {count}"), work=Work(workers=count))
        run(changed)
        assert read_files(Path(changed.output)) == read_files(Path(options.output))


def by_user(parts: dict[str, list]) -> dict:
    return {
        (part, q.user_id, q.input): (q.output, [{**item, "id": ""} for item in q.profile])
        for part, questions in parts.items()
        for q in questions
    }


@pytest.mark.parametrize(
    "settings", [{}, {"split": "user"}, {"split": "user", "targets": "random", "max_profile": 5}]
)  # fmt: skip
def test_the_order_of_the_rows_does_not_matter(reviews, tmp_path, settings):
    options, rows = reviews
    run(replace(options, **settings))
    for seed in (1, 2):
        random.Random(seed).shuffle(rows)
        path = write_jsonl(tmp_path / f"{seed}.jsonl", rows)
        run(replace(options, histories=path, output=f"{path}.out", **settings))
        again = read_splits(Path(f"{path}.out"))
        assert by_user(again) == by_user(read_splits(Path(options.output)))
        users = list(dict.fromkeys(row["user"] for row in rows))
        for questions in again.values():
            order = [users.index(question.user_id) for question in questions]
            assert order == sorted(order)


@pytest.mark.parametrize("targets", ["last", "random"])
def test_the_user_split_has_each_user_in_one_split_only(reviews, targets):
    options, rows = reviews
    run(replace(options, split="user", targets=targets, dev_share=0.3, test_share=0.3))
    parts = read_splits(Path(options.output))
    users = [{question.user_id for question in questions} for questions in parts.values()]
    assert len(parts) == 3
    assert sum(map(len, users)) == len(set().union(*users)) > 30
    texts = {row["text"]: row for row in rows}
    for question in (question for questions in parts.values() for question in questions):
        own = [row for row in rows if row["user"] == question.user_id]
        asked = texts[REVIEWS.query(question.input)]
        others = [row for row in own if row is not asked and (targets == "random" or row["date"] < asked["date"])]
        others.sort(key=lambda row: row["date"])
        assert [item["text"] for item in question.profile] == [row["text"] for row in others]
        assert question.output == asked["score"]


def test_a_split_without_questions_has_no_files(reviews, capsys):
    options, _ = reviews
    run(replace(options, split="user", dev_share=0, test_share=0))
    assert {path.name for path in Path(options.output).iterdir()} == {
        "train_questions.json", "train_outputs.json", "report.json", "run.json",
    }  # fmt: skip
    assert "dev      0 questions; profiles: no files" in capsys.readouterr().out


def test_lamp1_questions_have_two_papers_of_which_the_author_cites_one(tmp_path):
    rows = [
        {
            "author": a,
            "title": f"{a}.{n}",
            "abstract": "x",
            "reference": f"{' ' * (n == 3)}cited by {a} in {n}" if n % 2 else None,
            "date": 2000 + n,
        }
        for a in range(20)
        for n in range(8)
    ]
    options = Build(
        write_jsonl(tmp_path / "a.jsonl", rows),
        "LaMP-1",
        output=str(tmp_path / "out"),
        map=("user=author",),
        targets_per_user=9,
    )
    run(options)
    golds = []
    for part, questions in read_splits(Path(options.output), "LaMP-1").items():
        assert len(questions) == (40 if part == "train" else 20)
        for question in questions:
            title, first, second = question.input.split('"')[1::2]
            right, wrong = (first, second) if question.output == "[1]" else (second, first)
            author, number = title.split(".")
            assert right == f"cited by {author} in {number}"
            assert wrong.startswith("cited by ")
            assert not wrong.startswith(f"cited by {author} ")
            assert [item["title"] for item in question.profile] == [f"{author}.{n}" for n in range(int(number))]
            assert set(question.profile[0]) == {"id", "title", "abstract", "date"}
            golds.append(question.output)
    assert 20 < golds.count("[1]") < 60


def test_lamp7_questions_have_a_paraphrase_of_the_users_text(tmp_path):
    rows = [
        {"user": 1, "tweet": f"gr8 {n}", "plain": f"great {n}" if n != 3 else "", "date": f"2020-01-0{n}"}
        for n in range(1, 6)
    ]
    path = write_csv(tmp_path / "a.csv", rows)
    options = Build(path, "LaMP-7", output=str(tmp_path / "out"), map=("text=tweet", "input=plain"))
    run(options)
    parts = read_splits(tmp_path / "out", "LaMP-7")
    assert {part: [(q.input.rpartition(": ")[2], q.output) for q in found] for part, found in parts.items()} == {
        "train": [("great 2", "gr8 2")],
        "dev": [("great 4", "gr8 4")],
        "test": [("great 5", "gr8 5")],
    }
    assert [item["text"] for item in parts["test"][0].profile] == ["gr8 1", "gr8 2", "gr8 3", "gr8 4"]
    with pytest.raises(LampError, match="'input' needs a column 'input'"):
        run(replace(options, map=("text=tweet",), output=str(tmp_path / "other")))


def test_the_question_may_use_another_column(tmp_path):
    rows = [{"user": 1, "text": "long", "title": f"short {n}", "score": 1, "date": 2000 + n} for n in range(3)]
    options = Build(
        write_jsonl(tmp_path / "a.jsonl", rows), "LaMP-3", output=str(tmp_path / "out"), map=("input=title",)
    )
    run(options)
    assert read_splits(tmp_path / "out")["test"][0].input == REVIEWS.input_for("short 2")


def test_a_finished_benchmark_is_not_made_again(reviews, capsys, monkeypatch):
    options, _ = reviews
    run(options)
    monkeypatch.setattr("lamp_jax.stages.build.gather", None)
    capsys.readouterr()
    run(replace(options, work=Work(workers=7)))
    assert capsys.readouterr().out.endswith("already made\n")
    with pytest.raises(LampError, match="other settings or inputs"):
        run(replace(options, seed=1))


def test_a_failed_build_leaves_no_output(reviews, tmp_path, monkeypatch):
    options, _ = reviews
    monkeypatch.setattr(histories, "_BUCKET_USERS", 5)
    appended = []

    def fail_at_last(complete, path):
        appended.append(path)
        if len(appended) > 20:
            raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(splits, "_append", fail_at_last)
        with pytest.raises(OSError, match="disk full"):
            run(options)
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl"}
    run(options)
    assert len(read_splits(Path(options.output))) == 3


def test_too_few_items_are_an_error_before_anything_is_written(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", rows_of(3, most=1))
    with pytest.raises(LampError, match=r"yields no question; users: 3 too few items"):
        run(Build(path, "LaMP-3", output=str(tmp_path / "out")))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "LaMP-9"}, "unknown task"),
        ({"targets_per_user": 0}, "--targets-per-user 0: must be 1 or more"),
        ({"min_profile": -1}, "--min-profile -1: must be 0 or more"),
        ({"max_profile": 2, "min_profile": 3}, "--max-profile 2 is less than --min-profile 3"),
        ({"dev_share": 0.6, "test_share": 0.6}, "together from 0 to 1"),
        ({"dev_share": -0.1}, "together from 0 to 1"),
        ({"targets": "random"}, "--targets random: needs --split user"),
        ({"work": Work(workers=-1)}, "--workers -1"),
        ({"date_format": "%Y-%Q"}, r"--date-format '%Y-%Q': '%Q' is not a code of strptime"),
        ({"date_format": "%Y", "date_form": "seconds"}, "--date-form and --date-format: give one of them"),
        ({"join": ("movies",)}, "write FILE:COLUMN"),
        ({"map": ("text",)}, "write FIELD=COLUMN"),
        ({"join": ("nowhere.csv:id",)}, r"nowhere\.csv: no such file"),
        ({"histories": "nowhere.csv"}, r"nowhere\.csv: no such file"),
    ],
)
def test_bad_options_are_refused_before_anything_is_read(reviews, tmp_path, settings, message):
    options, _ = reviews
    with pytest.raises(LampError, match=message):
        run(replace(options, **settings))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_no_profile_has_later_items_for_any_notation_of_the_zone(tmp_path):
    forms = ["2009/04/06 {}:00:00-07:00", "Mon, 06 Apr 2009 {}:00:00 -07:00", "2009-04-06 {}:00 PDT"]
    rows = [
        {"user": form, "text": str(hour), "score": 1, "date": form.format(hour)}
        for form in forms
        for hour in (18, 20, 22)
    ]
    # In UTC these are between the rows above.
    rows += [
        {"user": form, "text": str(hour - 7), "score": 1, "date": f"2009-04-0{6 + hour // 24}T{hour % 24:02}:00Z"}
        for form in forms
        for hour in (28, 26)
    ]
    run(Build(write_jsonl(tmp_path / "a.jsonl", rows), "LaMP-3", output=str(tmp_path / "out")))
    for question in read_splits(tmp_path / "out")["test"]:
        assert question.input.endswith("22")
        assert [item["text"] for item in question.profile] == ["18", "19", "20", "21"]


def test_an_output_over_the_input_is_refused(reviews, tmp_path):
    options, _ = reviews
    with pytest.raises(LampError, match="contains the input"):
        run(replace(options, output=str(tmp_path), force=True))
    assert Path(options.histories).exists()
