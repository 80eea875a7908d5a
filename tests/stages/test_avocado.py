"""`lamp avocado`: the benchmark's files, from archives that are only read."""

import json
import zipfile
from pathlib import Path

import pytest

from lamp_jax.data.files import read_outputs, read_questions
from lamp_jax.errors import LampError
from lamp_jax.options import Avocado, Work
from lamp_jax.stages.avocado import run
from lamp_jax.tasks.catalog import find_task

TASK = find_task("LaMP-6")


def archive(path: Path, mails: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in mails.items():
            file.writestr(name, content)


def mail(name: str) -> bytes:
    return f"Subject: about {name}\n\nbody of {name}\n".encode()


def question(number: int, asked: str, items: list[str], **more) -> dict:
    return {
        "id": str(number),
        "input": asked,
        "profile": [{"id": f"{number}{i}", "text": one, **more} for i, one in enumerate(items)],
    }


PARTS = {
    "train": [
        question(1, "001-1-EM.txt", ["001-2-EM.txt", "002-1-EM.txt"]),
        question(2, "001-2-EM.txt", ["001-1-EM.txt"]),
    ],
    "dev": [question(3, "002-1-EM", ["002-2-EM"])],
    "test": [question(4, "002-2-EM.txt", ["001-1-EM.txt"])],
}


@pytest.fixture
def place(tmp_path):
    """Folder with archives of two custodians and id files."""
    archive(
        tmp_path / "text/001.zip", {"001/001-1-EM.txt": mail("a"), "001/001-2-EM.txt": mail("b"), "001/x.txt": b"no"}
    )
    archive(tmp_path / "text/002.zip", {"deep/er/002-1-EM.txt": mail("c"), "002-2-EM.txt": mail("{d}")})
    write_ids(tmp_path, PARTS)
    return tmp_path


def write_ids(root: Path, parts: dict) -> None:
    for part, questions in parts.items():
        path = root / "ids" / part / f"{part}_questions.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(questions))


def options(root: Path, **more) -> Avocado:
    settings = {"output": str(root / "out"), "work": Work(workers=1), **more}
    return Avocado(archives=str(root / "text"), ids=str(root / "ids"), **settings)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_files_have_the_format_of_the_lamp_tasks(place, capsys):
    run(options(place))
    train = read_questions(place / "out/train_questions.json", task=TASK)
    assert train[0].input == "Generate a subject for the following email: body of a"
    assert train[0].profile == (
        {"id": "10", "text": "body of b", "title": "about b"},
        {"id": "11", "text": "body of c", "title": "about c"},
    )
    assert read_outputs(place / "out/train_outputs.json") == ("LaMP_6", {"1": "about a", "2": "about b"})
    assert read_outputs(place / "out/dev_outputs.json") == ("LaMP_6", {"3": "about c"})
    test = json.loads((place / "out/test_questions.json").read_text())
    assert [one["input"] for one in test] == ["Generate a subject for the following email: body of {d}"]
    assert {path.name for path in (place / "out").iterdir()} == {
        *("train_questions.json", "train_outputs.json", "dev_questions.json", "dev_outputs.json"),
        *("test_questions.json", "run.json"),
    }
    assert "train 2, dev 1, test 1" in capsys.readouterr().out


def test_dates_and_users_of_the_time_based_split_are_kept(place):
    parts = {part: [question(5, "001-1-EM", ["002-1-EM"], date="2001-05-01") | {"user_id": 7}] for part in PARTS}
    write_ids(place, parts)
    run(options(place))
    for part in parts:
        (found,) = read_questions(place / f"out/{part}_questions.json", task=TASK)
        assert found.user_id == 7
        assert found.profile == ({"id": "50", "text": "body of c", "title": "about c", "date": "2001-05-01"},)


def test_workers_change_no_byte_and_only_the_output_is_written(place):
    before = contents(place)
    run(options(place))
    run(options(place, output=str(place / "two"), work=Work(workers=2)))
    serial, parallel = contents(place / "out"), contents(place / "two")
    assert len(serial) == 6
    for made in (serial, parallel):
        del made["run.json"]  # contains the output's settings
    assert serial == parallel
    assert {name: content for name, content in contents(place).items() if name in before} == before
    assert {path.name for path in place.iterdir()} == {"text", "ids", "out", "two"}


def test_the_same_command_again_does_nothing(place, capsys):
    run(options(place))
    made = contents(place / "out")
    run(options(place, work=Work(workers=2)))
    assert capsys.readouterr().out.endswith("already made\n")
    assert contents(place / "out") == made


def test_replies_are_stripped_by_option(place):
    archive(place / "text/001.zip", {"001-1-EM.txt": b"Subject: s\n\nI agree.\n> quoted\n", "001-2-EM.txt": mail("b")})
    run(options(place))
    run(options(place, output=str(place / "own"), replies="strip"))
    kept, own = (read_questions(place / name / "train_questions.json")[0].input for name in ("out", "own"))
    assert kept == TASK.input_for("I agree.\n> quoted")
    assert own == TASK.input_for("I agree.")


def test_of_duplicate_mails_the_first_archive_counts(place, capsys):
    archive(place / "text/003.zip", {"003/001-1-EM.txt": mail("other")})
    run(options(place))
    assert read_outputs(place / "out/train_outputs.json").by_id["1"] == "about a"
    assert "1 further copies" in capsys.readouterr().out


def test_every_missing_mail_is_listed_and_the_remedies_work(place, capsys):
    missing = [f"009-{i:02}-EM" for i in range(25)]
    parts = PARTS | {
        "train": [
            *PARTS["train"],
            question(6, missing[0], ["001-1-EM"]),
            question(7, "001-1-EM", [*missing, "001-2-EM"]),
        ]
    }
    write_ids(place, parts)
    with pytest.raises(LampError, match="25 of 29 mails are in no archive") as error:
        run(options(place))
    assert missing[19] in str(error.value)
    assert missing[20] not in str(error.value)
    assert (place / "out/missing.txt").read_text().split() == missing
    assert not (place / "out/train_questions.json").exists()

    run(options(place, missing="drop"))
    assert "1 questions, and 25 items of the others" in capsys.readouterr().out
    train = read_questions(place / "out/train_questions.json", task=TASK)
    assert [(one.id, len(one.profile)) for one in train] == [("1", 2), ("2", 1), ("7", 1)]
    assert set(read_outputs(place / "out/train_outputs.json").by_id) == {"1", "2", "7"}
    assert (place / "out/missing.txt").read_text().split() == missing

    with pytest.raises(LampError, match="25 of 29"):
        run(options(place, missing="stop", force=True))
    assert read_questions(place / "out/train_questions.json", task=TASK) == train  # the old output remains

    archive(place / "text/009.zip", {f"009/{one}.txt": mail(one) for one in missing})
    run(options(place, missing="stop", force=True))
    assert len(read_questions(place / "out/train_questions.json")) == 4
    assert not (place / "out/missing.txt").exists()


def test_the_same_command_succeeds_once_archives_are_complete(place):
    (place / "text/002.zip").rename(place / "002.zip")
    with pytest.raises(LampError, match="2 of 4 mails"):
        run(options(place))
    (place / "002.zip").rename(place / "text/002.zip")
    run(options(place))
    assert not (place / "out/missing.txt").exists()


def test_a_split_is_never_dropped_completely(place):
    (place / "text/002.zip").unlink()
    with pytest.raises(LampError, match="dev: no archive has the mail of any of its 1 questions"):
        run(options(place, missing="drop"))


def test_test_ids_may_be_missing_and_others_may_not(place, capsys):
    (place / "ids/test/test_questions.json").unlink()
    run(options(place))
    assert "no test_questions.json, so no test file was written" in capsys.readouterr().out
    assert not (place / "out/test_questions.json").exists()
    (place / "ids/dev/dev_questions.json").rename(place / "ids/dev_questions.json")
    run(options(place, output=str(place / "flat")))
    (place / "ids/dev_questions.json").unlink()
    with pytest.raises(LampError, match=r"neither dev_questions\.json nor dev/dev_questions\.json"):
        run(options(place, output=str(place / "other")))


def break_start(path: Path) -> None:
    path.write_bytes(b"PK, but no zip")


def break_member(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"body of c"[:4], b"bodx"))


def encrypt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + flags] |= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_start, r"002\.zip: cannot be unzipped"),
        (break_member, r"002\.zip, deep/er/002-1-EM\.txt: cannot be unzipped"),
        (encrypt, r"002\.zip, deep/er/002-1-EM\.txt: encrypted"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_archives_that_cannot_be_read_are_named(place, damage, words, workers):
    with zipfile.ZipFile(place / "text/002.zip", "w") as file:  # stored uncompressed, so that its bytes can be located
        for name, content in (("deep/er/002-1-EM.txt", mail("c")), ("002-2-EM.txt", mail("d"))):
            file.writestr(name, content)
    damage(place / "text/002.zip")
    with pytest.raises(LampError, match=words):
        run(options(place, work=Work(workers=workers)))
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ([question(1, TASK.input_for("hello"), [])], "question '1': expected the id of a mail.*rebuilt already"),
        ([question(1, "", [])], "question '1': expected the id of a mail, found ''; is this an id file"),
        ([question(1, "001-1-EM", ["two words"])], "question '1', profile item '10': expected the id of a mail"),
        (
            [{"id": "1", "input": "001-1-EM", "profile": [{"id": "9"}]}],
            "question '1', profile item '9': expected the id of a mail, found None",
        ),
    ],
)
def test_files_without_ids_are_named(place, train, words):
    write_ids(place, {"train": train})
    with pytest.raises(LampError, match=rf"train_questions\.json, {words}"):
        run(options(place))


def test_invalid_options_are_refused(place):
    (place / "empty").mkdir()
    for changed, words in (
        ({"work": Work(beam_runner="DirectRunner")}, "runs on one machine"),
        ({"work": Work(workers=-1)}, "must be 0"),
        ({"output": str(place)}, "contains the input"),
        ({"output": str(place / "ids"), "force": True}, "contains the input"),
        ({"output": str(place / "text/out")}, "is inside the input"),
    ):
        with pytest.raises(LampError, match=words):
            run(options(place, **changed))
    for archives, words in (("empty", "contains no zip files"), ("nowhere", "no such directory")):
        with pytest.raises(LampError, match=words):
            run(Avocado(archives=str(place / archives), ids=str(place / "ids"), output=str(place / "out")))


def test_files_not_made_by_lamp_are_never_removed(place):
    (place / "out").mkdir()
    (place / "out/missing.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(LampError, match="move it away"):
            run(options(place, force=force))
    assert (place / "out/missing.txt").read_text() == "mine"
