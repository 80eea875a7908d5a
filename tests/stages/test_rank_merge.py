"""`lamp rank` and `lamp merge` of one file and of a tree: the same bytes by any workers, and no incomplete output."""

import json
import re
from pathlib import Path

import pytest

from lamp_jax import cli
from lamp_jax.data import chunks
from lamp_jax.data.files import read_questions
from lamp_jax.datasets.synthetic import write_benchmark
from lamp_jax.retrieval.fusion import fuse_rankings
from lamp_jax.retrieval.ranking import RankingFile
from lamp_jax.runs import workers
from lamp_jax.tasks.catalog import TASKS, find_task

TASK = find_task("LaMP-3")


def lamp(*words) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture
def benchmark(tmp_path, monkeypatch) -> Path:
    """60 train and 20 dev questions in many chunks, each large enough for a worker."""
    monkeypatch.setattr(chunks, "_CHUNK_BYTES", 2**13)
    monkeypatch.setattr(workers, "_BYTES_WORTH_A_PROCESS", 1)
    write_benchmark(TASK, tmp_path / "data", questions=60, dev_questions=20, profile_size=6, seed=0)
    return tmp_path / "data"


WORKERS = {
    "two processes": ("--workers", 2),
    "beam": ("--beam-runner", "DirectRunner"),
}


def rank_and_merge(data: Path, folder: Path, *words, ranker: str = "bm25") -> list[bytes]:
    """The ranking, its scores and the merged file."""
    questions, ranking, scores = data / "train_questions.json", folder / "r.json", folder / "s.json"
    asked = ("--task", "LaMP-3", "--questions", questions, "--ranker", ranker)
    assert lamp("rank", *asked, "--output", ranking, "--scores", scores, *words) == 0
    golds = ("--outputs", data / "train_outputs.json")
    merged = ("--ranking", ranking, "--output", folder / "m.json")
    assert lamp("merge", "--questions", questions, *golds, *merged, *words) == 0
    return [(folder / name).read_bytes() for name in ("r.json", "s.json", "m.json")]


@pytest.mark.parametrize("who", WORKERS)
@pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning", "default::ResourceWarning")
def test_outputs_are_the_same_for_any_workers(benchmark, tmp_path, who):
    if "beam" in who:
        pytest.importorskip("apache_beam")
    alone = rank_and_merge(benchmark, tmp_path / "alone", "--workers", 1)
    assert rank_and_merge(benchmark, tmp_path / "together", *WORKERS[who]) == alone


def test_a_merged_file_has_every_question_with_its_gold_in_the_rankings_order(benchmark, tmp_path):
    rank_and_merge(benchmark, tmp_path, ranker="recency")
    merged = read_questions(tmp_path / "m.json", task=TASK)
    golds = {gold["id"]: gold["output"] for gold in json.loads((benchmark / "train_outputs.json").read_text())["golds"]}
    assert {question.id: question.output for question in merged} == golds
    for question in merged:
        dates = [item["date"] for item in question.profile]
        assert dates == sorted(dates, reverse=True)
    assert json.loads((tmp_path / "r.json").read_text()) == {
        question.id: [item["id"] for item in question.profile] for question in merged
    }


@pytest.mark.parametrize("file", ["outputs", "ranking"])
def test_ids_in_only_one_file_are_counted_and_nothing_is_written(benchmark, tmp_path, file, capsys):
    rank_and_merge(benchmark, tmp_path)
    ranking, outputs = json.loads((tmp_path / "r.json").read_text()), benchmark / "train_outputs.json"
    golds = json.loads(outputs.read_text())
    ranking["new"] = ranking.pop("200") if file == "ranking" else ranking.pop("new", None)
    golds["golds"][0]["id"] = "new" if file == "outputs" else golds["golds"][0]["id"]
    (tmp_path / "ranking").write_text(json.dumps({key: value for key, value in ranking.items() if value}))
    (tmp_path / "outputs").write_text(json.dumps(golds))
    words = ("--questions", benchmark / "train_questions.json", "--outputs", tmp_path / "outputs")
    assert lamp("merge", *words, "--ranking", tmp_path / "ranking", "--output", tmp_path / "new.json") == 1
    error = capsys.readouterr().err
    assert f"1 ids of {benchmark / 'train_questions.json'} are not in {tmp_path / file} (200)" in error
    assert f"1 ids of {tmp_path / file} are not in {benchmark / 'train_questions.json'} (new)" in error
    assert not list(tmp_path.glob("*new.json*"))


def fuse(data: Path, rankings: list[Path], output: Path, *words) -> int:
    asked = ("--task", "LaMP-3", "--questions", data / "train_questions.json", "--ranker", "rrf")
    return lamp("rank", *asked, "--rankings", *rankings, "--output", output, *words)


@pytest.fixture
def two_rankings(benchmark, tmp_path) -> list[Path]:
    for ranker in ("bm25", "recency"):
        rank_and_merge(benchmark, tmp_path / ranker, ranker=ranker)
    return [tmp_path / ranker / "r.json" for ranker in ("bm25", "recency")]


def test_fusion_is_the_same_for_any_workers_and_equals_that_of_all_questions(benchmark, tmp_path, two_rankings):
    questions = read_questions(benchmark / "train_questions.json", task=TASK)
    rankings = {path.parent.name: RankingFile(path) for path in two_rankings}
    expected = {one.question_id: one.item_ids for one in fuse_rankings(questions, rankings)}
    for workers_ in (1, 2):
        output = tmp_path / f"{workers_}.json"
        assert fuse(benchmark, two_rankings, output, "--workers", workers_) == 0
        assert list(json.loads(output.read_text()).items()) == list(expected.items())


def test_fused_rankings_of_other_questions_are_counted_and_nothing_is_written(
    benchmark, tmp_path, two_rankings, capsys
):
    ranking = json.loads(two_rankings[1].read_text())
    ranking["new"] = ranking.pop("200")
    two_rankings[1].write_text(json.dumps(ranking))
    assert fuse(benchmark, two_rankings, tmp_path / "f.json") == 1
    error = capsys.readouterr().err
    assert f"1 ids of the questions are not in {two_rankings[1]} (200); 1 ids of" in error
    assert not list(tmp_path.glob("*f.json*"))


def test_a_ranking_of_other_items_is_named(benchmark, tmp_path, capsys):
    rank_and_merge(benchmark, tmp_path)
    ranking = json.loads((tmp_path / "r.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(ranking | {"203": ["1", "2"]}))
    words = ("--questions", benchmark / "train_questions.json", "--ranking", tmp_path / "other.json")
    assert lamp("merge", *words, "--output", tmp_path / "new.json") == 1
    assert re.search(r"other\.json, question '203': the ranking lacks \d of \d", capsys.readouterr().err)


def test_an_id_that_occurs_twice_far_apart_is_named(benchmark, tmp_path, capsys):
    path = benchmark / "train_questions.json"
    records = json.loads(path.read_text())
    path.write_text(json.dumps([*records, records[0]]))
    assert lamp("rank", "--task", "LaMP-3", "--questions", path, "--output", tmp_path / "r.json") == 1
    assert f"{path}, question '200': this id occurs twice" in capsys.readouterr().err
    assert lamp("merge", "--questions", path, "--output", tmp_path / "m.json") == 1
    assert f"{path}, question '200': this id occurs twice" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json*"))


def test_files_that_changed_between_two_merges_are_read_again(benchmark, tmp_path):
    words = ("--questions", benchmark / "train_questions.json", "--outputs", tmp_path / "golds.json")
    golds = json.loads((benchmark / "train_outputs.json").read_text())
    for answer in ("1", "2"):
        changed = {**golds, "golds": [{**gold, "output": answer} for gold in golds["golds"]]}
        (tmp_path / "golds.json").write_text(json.dumps(changed))
        assert lamp("merge", *words, "--output", tmp_path / "m.json", "--force", "--workers", 1) == 0
        assert {question.output for question in read_questions(tmp_path / "m.json")} == {answer}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--plan",), "--plan and --tasks are for a tree"),
        (("--rankings", "a.json", "b.json"), "--rankings is only for --ranker rrf, not for bm25"),
        (("--workers", -1), "--workers -1: must be 0"),
        (("--beam-runner", "FlinkRunner"), "give --beam-staging, a directory that all machines see"),
        (("--beam-runner", "DirectRunner", "--beam-staging", "absent"), "--beam-staging absent: no such directory"),
        (("--output", "{data}/train_questions.json/x.json"), "a part of this path is a file, not a directory"),
    ],
)
def test_inconsistent_options_are_named(benchmark, tmp_path, words, said, capsys):
    if "--beam-runner" in words:
        pytest.importorskip("apache_beam")
    asked = ("--task", "LaMP-3", "--questions", benchmark / "train_questions.json", "--output", tmp_path / "r.json")
    assert lamp("rank", *asked, *(str(word).format(data=benchmark) for word in words)) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()


# --- a tree


@pytest.fixture
def tree(tmp_path) -> Path:
    """Two tasks of the time split in the folders of a download, and another task in a single folder."""
    for name in ("LaMP-3", "LaMP-4"):
        flat = tmp_path / "flat" / name
        write_benchmark(find_task(name), flat, questions=20, dev_questions=5, profile_size=4, seed=0)
        for file in flat.glob("*_*.json"):
            part = file.name.partition("_")[0]
            place = tmp_path / "tree/time" / find_task(name).folder / part / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            file.rename(place)
    return tmp_path / "tree"


def test_every_file_of_a_tree_is_ranked_and_merged_once(tree, tmp_path, capsys):
    words = ("rank", "--all", tree, "--split", "time", "--output", tmp_path / "out")
    assert lamp(*words) == 0  # by recency, the best ranker of these two tasks in the papers
    merged = sorted(str(path.relative_to(tmp_path / "out")) for path in tmp_path.rglob("*_recency.json"))
    assert merged == [f"time/LaMP_{task}/{part}_recency.json" for task in (3, 4) for part in ("dev", "train")]
    for path in merged:
        questions = read_questions(tmp_path / "out" / path)
        assert len(questions) == (20 if "train" in path else 5)
        assert all(question.output is not None for question in questions)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")}
    capsys.readouterr()
    assert lamp(*words, "--workers", 1) == 0
    assert capsys.readouterr().out.count("already merged") == 4
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")} == times


def test_a_plan_only_reports(tree, tmp_path, capsys):
    words = ("rank", "--all", tree, "--split", "time", "--output", tmp_path / "out", "--plan")
    assert lamp(*words, "--ranker", "bm25") == 0
    printed = capsys.readouterr().out
    assert printed.count("bm25") == 4 * 2
    assert "4 of 4 files to do" in printed
    assert not (tmp_path / "out").exists()
    assert lamp(*words, "--tasks", "LaMP-3", "--ranker", "dense") == 0
    assert "dense: estimated for this machine's cores" in capsys.readouterr().out


def test_one_bad_file_does_not_stop_the_others(tree, tmp_path, capsys):
    (tree / "time/LaMP_3/train/train_questions.json").write_text('[{"id": "1"')
    assert lamp("rank", "--all", tree, "--split", "time", "--output", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "3 of 4 files are ranked and merged" in said.out
    assert "1 of 4 files failed:\nLaMP-3 train: " in said.err
    assert "truncated JSON" in said.err


def test_best_is_the_ranker_chosen_by_the_papers():
    chosen = {(task.name, split): task.best.of(split) for task in TASKS.values() for split in ("user", "time")}
    others = {("LaMP-3", "time"): "recency", ("LaMP-4", "time"): "recency"}
    others |= {("LaMP-5", "user"): "bm25", ("LaMP-6", "user"): "bm25"}
    assert chosen == {key: others.get(key, "dense") for key in chosen}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--questions", "q.json"), "leave --questions, --rankings and --scores out"),
        (("--ranker", "rrf"), "rrf fuses existing rankings"),
        (("--tasks", "LaMP-5"), "no questions of LaMP-5, time split"),
        (("--split", "user"), "no questions of any task, user split"),
    ],
)
def test_invalid_options_for_a_tree_are_named(tree, tmp_path, words, said, capsys):
    assert lamp("rank", "--all", tree, "--split", "time", "--output", tmp_path / "out", *words) == 1
    assert said in capsys.readouterr().err


def test_a_tree_without_task_folders_needs_the_task(benchmark, tmp_path, capsys):
    words = ("rank", "--all", benchmark, "--ranker", "bm25", "--output", tmp_path / "out")
    assert lamp(*words) == 1
    assert "is not in a task's folder; name its task with --tasks" in capsys.readouterr().err
    assert lamp(*words, "--tasks", "LaMP-3") == 0
    assert "2 of 2 files are ranked and merged" in capsys.readouterr().out


def test_files_of_ids_are_skipped(tree, tmp_path, capsys):
    ids = tree / "time/LaMP_6/train/train_questions.json"
    ids.parent.mkdir(parents=True)
    ids.write_text(json.dumps([{"id": "50", "input": "043-8829-EM", "profile": [{"id": "500", "text": "043-1-EM"}]}]))
    assert lamp("rank", "--all", tree, "--split", "time", "--output", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert f"{ids}: has only ids of mails and is left out; make LaMP-6 with `lamp avocado`" in said
    assert "4 of 4 files are ranked and merged" in said
