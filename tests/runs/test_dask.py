"""Beam pipelines on a Dask cluster of two worker processes: the same bytes as without Beam, and errors with causes."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lamp_jax import cli
from lamp_jax.config import Work
from lamp_jax.data import chunks
from lamp_jax.data.files import Question, read_questions
from lamp_jax.datasets import histories
from lamp_jax.datasets.synthetic import write_benchmark
from lamp_jax.decoding.feedback import RatedAnswer
from lamp_jax.errors import LampError
from lamp_jax.runs import beam
from lamp_jax.runs.workers import parallel_map
from lamp_jax.tasks.catalog import find_task
from lamp_jax.tasks.rewards import LIKELIHOOD
from tests.goldens.cases import CASES
from tests.runs.test_beam import refuse_the_third, square

pytest.importorskip("apache_beam")
distributed = pytest.importorskip("distributed")
# Warnings of the code of Beam and Dask.
pytestmark = pytest.mark.filterwarnings(
    "default::DeprecationWarning",
    "default::FutureWarning",
    "default::ResourceWarning",
    "default::pytest.PytestUnraisableExceptionWarning",
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of the scheduler of two worker processes, which live as long as the tests of this module."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as local:
        yield local.scheduler_address


@pytest.fixture
def work(cluster, tmp_path) -> Work:
    (tmp_path / "staging").mkdir()
    options = (f"dask_client_address={cluster}",)
    return Work(beam_runner="DaskRunner", beam_options=options, beam_staging=str(tmp_path / "staging"))


def words_of(work: Work) -> list[str]:
    options = ["--beam-options", *work.beam_options]
    return ["--beam-runner", work.beam_runner, *options, "--beam-staging", work.beam_staging]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A benchmark, a ranking of its train questions, its dev questions with references, and rows of histories."""
    folder = tmp_path_factory.mktemp("data")
    write_benchmark(find_task("LaMP-3"), folder, questions=40, dev_questions=10, profile_size=6, seed=0)
    asked = ["--questions", str(folder / "train_questions.json")]
    ranked = ["--ranker", "recency", "--output", str(folder / "ranking")]
    assert cli.main(["rank", "--task", "LaMP-3", *asked, *ranked]) == 0
    dev = ["--questions", str(folder / "dev_questions.json"), "--outputs", str(folder / "dev_outputs.json")]
    assert cli.main(["merge", *dev, "--output", str(folder / "merged")]) == 0
    rows = [{**item, "user": question.id} for question in read_questions(asked[1]) for item in question.profile]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


COMMANDS = {
    "rank": "rank --task LaMP-3 --questions {data}/train_questions.json --output {out}/r.json --scores {out}/s.json",
    "merge": "merge --questions {data}/train_questions.json --outputs {data}/train_outputs.json "
    "--ranking {data}/ranking --output {out}/m.json",
    "build": "build --histories {data}/rows.jsonl --task LaMP-3 --split time --min-profile 1 --output {out}",
    "tfds": "tfds --task LaMP-3 --data {data} --output {out}",
    "check": "check {data}/train_questions.json --output {out}/c.json",
}


def run(command: str, data: Path, folder: Path, *more: str) -> dict[str, bytes]:
    """Runs a command, and returns the content of its files."""
    folder.mkdir(exist_ok=True)
    assert cli.main([*command.format(data=data, out=folder).split(), *more]) == 0
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("run.json"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_writes_the_same_bytes(name, data, work, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "_CHUNK_BYTES", 2**13)
    monkeypatch.setattr(histories, "_BUCKET_USERS", 10)
    alone = run(COMMANDS[name], data, tmp_path / "alone", "--workers", "1")
    assert run(COMMANDS[name], data, tmp_path / "together", *words_of(work)) == alone
    assert alone
    assert not list(Path(work.beam_staging).iterdir())


def count_characters(questions: Sequence[Question], source: np.ndarray) -> list[RatedAnswer]:
    return [(None, {LIKELIHOOD: len(question.profile[0]["text"])}) for question in questions]


def test_feedback_in_shards_writes_the_same_bytes(data, work, tmp_path, monkeypatch, capsys):
    """Reading, shards, records and their count; the rewards are invented, so that nothing is compiled."""
    monkeypatch.setattr(chunks, "_CHUNK_BYTES", 2**12)
    monkeypatch.setattr("lamp_jax.stages.feedback.likelihood_rater", lambda *_, **__: count_characters)
    command = (
        f"feedback items --task LaMP-3 --merged {{data}}/merged --model {CASES}/tiny/t5_ft --reward likelihood "
        "--profile-size 2 --batch-size 8 --max-length 32 --shards 2 --output {out}/feedback"
    )
    written = []
    for name, words in (("alone", ["--workers", "1"]), ("together", words_of(work))):
        run(command, data, tmp_path / name, *words, "--shard", "0")
        assert "shard 0 of 2 is done, others are not" in capsys.readouterr().out
        export = ["--export-reference", str(tmp_path / name / "reference.json")]
        written.append(run(command, data, tmp_path / name, *words, "--shard", "1", *export))
        assert "feedback on 20 pairs" in capsys.readouterr().out
    assert written[0] == written[1]
    assert [written[0][f"feedback/items-{shard}-of-2.jsonl"].count(b"\n") for shard in (0, 1)] == [10, 10]
    assert len(json.loads(written[0]["reference.json"])) == 20


def test_both_workers_compute_and_results_come_in_order(work):
    results = list(parallel_map(square, range(12), work, size=0))
    assert [result for result, _ in results] == [number * number for number in range(12)]
    assert len({process for _, process in results}) == 2
    assert list(parallel_map(square, [], work, size=0)) == []
    partition = replace(work, beam_options=(*work.beam_options, "dask_npartitions=1"))
    assert len({process for _, process in parallel_map(square, range(8), partition, size=0)}) == 1


def test_workers_that_outlive_a_run_read_changed_files_again(data, work, tmp_path):
    golds = json.loads((data / "dev_outputs.json").read_text())
    for answer in ("1", "2"):
        changed = {**golds, "golds": [{**gold, "output": answer} for gold in golds["golds"]]}
        (tmp_path / "golds.json").write_text(json.dumps(changed))
        command = (
            f"merge --questions {{data}}/dev_questions.json --outputs {tmp_path}/golds.json --output {{out}}/m.json"
        )
        run(command, data, tmp_path / answer, *words_of(work))
        assert {question.output for question in read_questions(tmp_path / answer / "m.json")} == {answer}


def test_workers_that_outlive_a_run_read_a_changed_ranking_again(data, work, tmp_path):
    """Fusion of a ranking with itself is that ranking."""
    ranking = {one: list(items) for one, items in json.loads((data / "ranking").read_text()).items()}
    for name, changed in (("ranked", ranking), ("reversed", {one: items[::-1] for one, items in ranking.items()})):
        for path in ("ranking", "copy"):
            (tmp_path / path).write_text(json.dumps(changed))
        command = (
            f"rank --task LaMP-3 --questions {{data}}/train_questions.json --ranker rrf --rankings {tmp_path}/ranking "
            f"{tmp_path}/copy "
            "--output {out}/fused"
        )
        fused = run(command, data, tmp_path / name, *words_of(work))["fused"]
        assert json.loads(fused) == changed


def test_an_error_on_a_worker_is_raised_unchanged(work):
    with pytest.raises(LampError, match="question '3': no good"):
        list(parallel_map(refuse_the_third, range(9), work, size=0))


def test_a_file_that_a_worker_does_not_have_is_an_error_with_the_machine(work, tmp_path):
    with pytest.raises(LampError, match=r"machine .*No such file.*absent.*give absolute paths"):
        list(parallel_map(Path.read_bytes, [tmp_path / "absent"], work, size=0))


def test_a_staging_directory_that_a_worker_does_not_have_is_an_error(work, monkeypatch):
    write = beam._write_pieces

    def hide(*arguments) -> list[int]:
        starts = write(*arguments)
        Path(arguments[-1]).rename(Path(work.beam_staging, "on this machine alone"))
        return starts

    monkeypatch.setattr(beam, "_write_pieces", hide)
    with pytest.raises(LampError, match=r"--beam-staging: machine .* has no directory .*lamp-beam-"):
        list(parallel_map(square, range(3), work, size=0))


def test_a_missing_result_is_an_error_that_names_its_piece(work, monkeypatch):
    run_pipeline = beam._run_pipeline

    def lose(starts, staging, work) -> None:
        run_pipeline(starts, staging, work)
        for number in (2, 4):
            Path(staging, str(number)).unlink()

    monkeypatch.setattr(beam, "_run_pipeline", lose)
    with pytest.raises(LampError, match=r"ended without 2 of 5 results, the first of them that of 12; is .*staging"):
        list(parallel_map(square, range(10, 15), work, size=0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("dask_client_adress=tcp://127.0.0.1:1",), "unknown options of Beam: dask_client_adress"),
        (("dask_npartitions=1", "dask_partition_size=1"), "not allowed with argument"),
        (("dask_scheduler_file=absent.json",), "dask_scheduler_file=absent.json: no such file"),
        (("dask_client_address=tcp://127.0.0.1:9", "dask_connection_timeout=1"), "start `dask scheduler`"),
    ],
)
def test_options_without_a_cluster_are_an_error(tmp_path, options, said):
    work = Work(beam_runner="DaskRunner", beam_options=options, beam_staging=str(tmp_path))
    with pytest.raises(LampError, match=said):
        list(parallel_map(square, range(3), work, size=0))


def test_without_dask_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(LampError, match=r"Dask is not installed; pip install 'lamp_jax\[dask\]'"):
        list(parallel_map(square, range(3), Work(beam_runner="DaskRunner", beam_staging=str(tmp_path)), size=0))
