"""`lamp feedback items`: complete, in a fixed order, and the same bytes after any kill."""

import itertools
import json
import signal
import subprocess
import sys
import time
from collections import Counter

import jax
import numpy as np
import pytest

from lamp_jax import cli
from lamp_jax.artifacts.feedback import first_pairs, read_feedback
from lamp_jax.data.files import Question, read_questions
from lamp_jax.inputs.batches import pad_rows
from lamp_jax.inputs.generator import make_prompts, prompt_examples
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.models.families import load_generator
from lamp_jax.models.generator import decoder_inputs
from lamp_jax.options import Prompting, Prompts
from lamp_jax.runs.journals import read_journal
from lamp_jax.tasks.catalog import find_task
from tests.goldens import cases

MODEL = cases.CASES / "tiny" / "t5_ft"
SIZE = 8
TASK = find_task("LaMP-4")
FILE = "items-0-of-1.jsonl"


def lamp(*words) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """Questions with golds. One profile contains an id twice."""
    golds = cases.read_outputs("4", "dev")
    questions = [{**one, "output": golds[one["id"]]} for one in cases.read_questions("4", "dev")]
    questions[3]["profile"][1]["id"] = questions[3]["profile"][0]["id"]
    path = tmp_path_factory.mktemp("questions") / "merged.json"
    path.write_text(json.dumps(questions))
    return path


def words(merged, output, *more, batch_size=8):
    size = ("--profile-size", SIZE, "--batch-size", batch_size, "--max-length", 128, "--num-beams", 2)
    given = ("--task", "LaMP-4", "--merged", merged, "--model", MODEL, *size, "--generation-max-length", 8)
    return ("feedback", "items", *given, *more, "--output", output)


@pytest.fixture(scope="module")
def complete_run(merged, tmp_path_factory):
    """Output of an uninterrupted run, and its feedback in the public code's format."""
    folder = tmp_path_factory.mktemp("whole")
    assert lamp(*words(merged, folder / "feedback", "--export-reference", folder / "scores.json")) == 0
    return folder


def records(directory, name=FILE):
    return list(read_journal(directory / name))


def pairs(merged):
    return list(first_pairs(read_questions(merged, task=TASK), SIZE))


def test_every_pair_has_one_record(merged, complete_run):
    expected = {(pair.question.id, pair.item_id, pair.rank) for pair in pairs(merged)}
    found = Counter((one["question"], one["item"], one["rank"]) for one in records(complete_run / "feedback"))
    assert found == Counter(expected)
    assert len(expected) == sum(min(SIZE, len(one.profile)) for one in read_questions(merged)) - 1
    for one in records(complete_run / "feedback"):
        assert isinstance(one["output"], str)
        assert {"rouge-1", "rouge-L"} <= one["metrics"].keys()
    assert json.loads((complete_run / "feedback" / "run.json").read_text())["finished"]
    # Answers depend on their items; otherwise these tests could not detect exchanged records.
    assert len({one["output"] for one in records(complete_run / "feedback")}) > 5


def test_the_same_command_at_another_path_writes_the_same_bytes_and_again_does_nothing(
    merged, complete_run, tmp_path, capsys
):
    assert lamp(*words(merged, tmp_path / "again")) == 0
    written = tmp_path / "again" / FILE
    assert written.read_bytes() == (complete_run / "feedback" / FILE).read_bytes()
    first = written.stat().st_mtime_ns
    capsys.readouterr()
    assert lamp(*words(merged, tmp_path / "again")) == 0
    assert f"feedback on {len(pairs(merged))} pairs" in capsys.readouterr().out
    assert written.stat().st_mtime_ns == first


@pytest.mark.parametrize("more", [("--reward", "likelihood"), ("--decode", "greedy"), ("--shards", "2")])
def test_other_settings_at_the_same_place_are_refused(merged, complete_run, capsys, more):
    before = (complete_run / "feedback" / FILE).read_bytes()
    assert lamp(*words(merged, complete_run / "feedback", *more)) == 1
    assert "other settings or inputs" in capsys.readouterr().err
    assert (complete_run / "feedback" / FILE).read_bytes() == before


def test_the_exported_file_has_the_public_codes_format_and_the_same_feedback(merged, complete_run, tmp_path):
    written = json.loads((complete_run / "scores.json").read_text())
    assert written == {f"{one['question']}-{one['item']}": one["metrics"] for one in records(complete_run / "feedback")}
    questions = read_questions(merged, task=TASK)
    sources = (complete_run / "feedback", complete_run / "scores.json")
    found = [read_feedback([source], TASK, questions, profile_size=SIZE) for source in sources]
    assert found[0] == found[1]
    # Also from a directory that is already complete.
    assert lamp(*words(merged, complete_run / "feedback", "--export-reference", tmp_path / "later.json")) == 0
    assert (tmp_path / "later.json").read_bytes() == (complete_run / "scores.json").read_bytes()


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def run_and_kill(given, path):
    """Runs the command in a process of its own, and kills it once its file has grown by more than a batch."""
    code = "import sys; from lamp_jax import cli; sys.exit(cli.main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, given)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wanted, deadline = lines(path) + 8, time.monotonic() + 300
    try:
        while lines(path) <= wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert lines(path) > wanted


def truncate_in_a_line(path):
    path.write_bytes(path.read_bytes()[:-7])


def truncate_in_a_batch(path):
    """Truncates the file as if the disk had lost some of the last batches."""
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-5]))


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_ends_with_the_same_bytes(merged, complete_run, tmp_path):
    given, path = words(merged, tmp_path / "killed"), tmp_path / "killed" / FILE
    expected = (complete_run / "feedback" / FILE).read_bytes()
    for cut in (truncate_in_a_line, truncate_in_a_batch, lambda path: None):
        run_and_kill(given, path)
        cut(path)
        assert 0 < lines(path) < expected.count(b"\n")
        assert expected.startswith(path.read_bytes())
    assert not json.loads((tmp_path / "killed" / "run.json").read_text())["finished"]
    assert lamp(*given) == 0
    assert path.read_bytes() == expected
    assert sorted(one.name for one in path.parent.iterdir()) == sorted([FILE, "run.json"])


def test_the_shards_together_are_the_complete_set(merged, complete_run, tmp_path, capsys):
    output = tmp_path / "shared"
    assert lamp(*words(merged, output, "--shards", 2, "--shard", 1)) == 0
    assert "shard 1 of 2 is done, others are not" in capsys.readouterr().out
    questions = read_questions(merged, task=TASK)
    assert lamp(*words(merged, output, "--shards", 2, "--shard", 0, "--export-reference", tmp_path / "s.json")) == 0
    found, expected = (
        read_feedback([directory], TASK, questions, profile_size=SIZE)
        for directory in (output, complete_run / "feedback")
    )
    assert found == expected
    assert json.loads((tmp_path / "s.json").read_text()) == json.loads((complete_run / "scores.json").read_text())
    each = [{one["question"] for one in records(output, f"items-{shard}-of-2.jsonl")} for shard in range(2)]
    assert not each[0] & each[1]
    assert each[0] | each[1] == {question.id for question in questions}


def test_an_unfinished_shard_is_not_read(merged, tmp_path, capsys):
    """Also if its command has not begun."""
    (tmp_path / "one.json").write_text(json.dumps(json.loads(merged.read_text())[:2]))
    given = words(tmp_path / "one.json", tmp_path / "half", "--shards", 2)
    assert lamp(*given, "--export-reference", tmp_path / "scores.json") == 0
    assert "others are not" in capsys.readouterr().out
    assert not (tmp_path / "scores.json").exists()
    assert not json.loads((tmp_path / "half" / "run.json").read_text())["finished"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--shards", 2, "--force"), "would remove the other shards' work"),
        (("--shards", 2, "--shard", 2), "numbered from 0 to 1"),
        (("--shard", -1), "numbered from 0 to 0"),
    ],
)
def test_invalid_shards_are_refused(merged, complete_run, capsys, more, message):
    before = (complete_run / "feedback" / FILE).read_bytes()
    assert lamp(*words(merged, complete_run / "feedback", *more)) == 1
    assert message in capsys.readouterr().err
    assert (complete_run / "feedback" / FILE).read_bytes() == before


def test_a_question_without_a_gold_is_named(merged, tmp_path, capsys):
    questions = json.loads(merged.read_text())
    del questions[4]["output"]
    (tmp_path / "q.json").write_text(json.dumps(questions))
    assert lamp(*words(tmp_path / "q.json", tmp_path / "out")) == 1
    assert questions[4]["id"] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def mean_log_probabilities(sources, targets):
    """From the logits of one batch, token by token in float64."""
    model = load_generator(MODEL)
    tokens = pad_rows(sources, len(sources), 128, pad=0)
    labels = pad_rows(targets, len(targets), max(map(len, targets)), pad=0)

    @jax.jit
    def read(model, tokens, labels):
        encoded = model.encode(tokens)
        return model.decode(decoder_inputs(labels, model.config), encoded, model.source_mask(tokens))

    logits = np.asarray(read(model, tokens, labels), np.float64)
    for row, target in enumerate(targets):
        chosen = [logits[row, place, token] for place, token in enumerate(target)]
        total = [np.log(np.exp(logits[row, place]).sum()) for place in range(len(target))]
        yield float(np.mean(np.array(chosen) - np.array(total)))


def test_a_likelihood_is_the_mean_log_probability_of_the_golds_tokens(merged, tmp_path):
    assert lamp(*words(merged, tmp_path / "out", "--reward", "likelihood")) == 0
    found = records(tmp_path / "out")
    assert len(found) == len(pairs(merged))
    assert {one["output"] for one in found} == {None}
    by_pair = {(one["question"], one["item"]): one["metrics"]["likelihood"] for one in found}
    some = list(itertools.islice(pairs(merged), 0, None, 3))
    tokenizer = load_tokenizer(MODEL)
    settings = Prompts("", "", "", "", prompting=Prompting(num_retrieved=1, max_length=128))
    alone = [Question(q.id, q.input, (q.profile[rank],), output=q.output) for q, rank in some]
    sources = [
        one.source for one in prompt_examples(alone, make_prompts(alone, TASK, tokenizer, settings, retriever="file"))
    ]
    targets = [tokenizer(q.output).input_ids for q, _ in some]
    targets = [row if len(row) <= 7 else [*row[:6], row[-1]] for row in targets]  # 7 new tokens, `</s>` included
    expected = mean_log_probabilities(sources, targets)
    for pair, value in zip(some, expected, strict=True):
        assert by_pair[pair.question.id, pair.item_id] == pytest.approx(value, rel=1e-4, abs=1e-5)
    assert len(set(by_pair.values())) > 10
