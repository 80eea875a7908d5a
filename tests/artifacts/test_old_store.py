"""Stores of the first version: readable for conversion, rejected by all other readers."""

import json
from contextlib import closing

import numpy as np
import pytest

from lamp_jax import cli
from lamp_jax.artifacts import old_store
from lamp_jax.artifacts.adapters import FORM, create_store, open_store, read_store_form
from lamp_jax.artifacts.old_store import NUMBERS, USERS
from lamp_jax.errors import LampError
from lamp_jax.stages import convert_store
from tests.artifacts.test_adapters import SMALL, contents, draw, entries_of
from tests.bucket import url

NAMES = ["a", "b", "ü", "\ud800", ""]


@pytest.fixture
def old(tmp_path):
    """Store of five users whose training is finished."""
    directory = tmp_path / "old"
    directory.mkdir()
    form = {**vars(SMALL), "shapes": dict(SMALL.shapes)}
    (directory / FORM).write_text(json.dumps(form))
    (directory / "run.json").write_text(json.dumps({"stage": "trainadapters", "finished": True, "users": 5}))
    drawn = draw(SMALL, 5)
    numbers = np.concatenate([values.reshape(5, -1) for values in drawn.values()], axis=1).astype(np.float32)
    old_store.append_users(directory, entries_of(*NAMES[:2]), numbers[:2])
    old_store.append_users(directory, entries_of(*NAMES)[2:], numbers[2:])
    return directory


def convert(old, output, *more):
    return cli.main(["convert-store", "--store", str(old), "--output", str(output), *more])


def unfinish(old):
    (old / "run.json").write_text(json.dumps({"stage": "trainadapters", "finished": False}))


def assert_converted(output, users):
    with closing(open_store(output)) as store:
        assert store.form == SMALL
        assert list(store.entries.values()) == entries_of(*NAMES)[:users]
        for name, values in store.read(NAMES[:users]).items():
            np.testing.assert_array_equal(values, draw(SMALL, 5)[name][:users].astype(np.float32))
    record = json.loads((output / "run.json").read_text())
    assert record["finished"]
    assert (record["users"], record["items"]) == (users, sum(range(users + 1)))


@pytest.mark.parametrize("block", [1, 2**26])
def test_a_converted_store_has_the_same_users_and_the_old_store_is_unchanged(old, tmp_path, monkeypatch, capsys, block):
    monkeypatch.setattr(convert_store, "_BLOCK", block)
    before = contents(old)
    assert convert(old, tmp_path / "new") == 0
    assert_converted(tmp_path / "new", 5)
    assert contents(old) == before
    assert convert(old, tmp_path / "new") == 0
    assert "already converted" in capsys.readouterr().out
    with closing(create_store(tmp_path / "new", SMALL)) as store:
        store.append(entries_of("more"), draw(SMALL, 1))


def test_a_killed_conversion_resumes_to_the_same_bytes(old, tmp_path, monkeypatch):
    monkeypatch.setattr(convert_store, "_BLOCK", 1)
    append, appended = convert_store.AdapterStore.append, []

    def append_and_die(self, entries, adapters):
        append(self, entries, adapters)
        appended.append(entries)
        if len(appended) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(convert_store.AdapterStore, "append", append_and_die)
    assert convert(old, tmp_path / "new") == 130
    assert convert(old, tmp_path / "new") == 0
    assert [entry.user for entries in appended for entry in entries] == NAMES
    assert_converted(tmp_path / "new", 5)
    assert convert(old, tmp_path / "other") == 0
    new, other = contents(tmp_path / "new"), contents(tmp_path / "other")
    assert {name: new[name] for name in new if name != "run.json"} == {
        name: other[name] for name in other if name != "run.json"
    }


def test_a_store_at_a_url_is_converted_to_a_url(old, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert convert(url(old), url(tmp_path / "new")) == 0
    assert_converted(tmp_path / "new", 5)


@pytest.mark.parametrize("cut", [NUMBERS, USERS])
def test_the_complete_users_of_a_truncated_store_are_converted(old, tmp_path, capsys, cut):
    unfinish(old)
    (old / cut).write_bytes((old / cut).read_bytes()[:-2])
    assert convert(old, tmp_path / "new") == 0
    assert_converted(tmp_path / "new", 4)
    printed = capsys.readouterr().out
    assert f"{old}: is truncated; incomplete users (1) are left out" in printed
    assert f"{old}: its training is not finished" in printed


@pytest.mark.parametrize("cut", [NUMBERS, USERS])
def test_a_finished_store_without_some_users_is_not_converted(old, tmp_path, capsys, cut):
    (old / cut).write_bytes((old / cut).read_bytes()[:-2])
    assert convert(old, tmp_path / "new") == 1
    assert f"{old}: its training finished with adapters of 5 users, but it has adapters of 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2: invalid JSON"),
        (b"[]", "line 2: expected an object"),
        (b'{"user": "b"}', "line 2: 'items' cannot be nothing"),
        (b'{"user": 1, "items": 1, "updates": 1, "loss": null, "crc32": 1}', "line 2: 'user' cannot be 1"),
    ],
)
def test_an_invalid_line_is_named(old, tmp_path, capsys, line, message):
    first, _, *others = (old / USERS).read_bytes().splitlines(True)
    (old / USERS).write_bytes(b"".join([first, line + b"\n", *others]))
    assert convert(old, tmp_path / "new") == 1
    assert f"{old / USERS}, {message}" in capsys.readouterr().err
    (old / USERS).write_bytes(first * 5)
    (old / NUMBERS).write_bytes((old / NUMBERS).read_bytes()[: SMALL.bytes_per_user] * 5)
    assert convert(old, tmp_path / "again") == 1
    assert "user 'a' is given twice" in capsys.readouterr().err


def test_damaged_numbers_are_named(old, tmp_path, capsys):
    numbers = bytearray((old / NUMBERS).read_bytes())
    numbers[SMALL.bytes_per_user] ^= 1
    (old / NUMBERS).write_bytes(numbers)
    assert convert(old, tmp_path / "new") == 1
    assert f"{old / NUMBERS}: the adapter of user 'b' is damaged; copy the store again" in capsys.readouterr().err


def test_a_directory_that_is_not_an_old_store_is_not_converted(old, tmp_path, capsys):
    assert convert(old, tmp_path / "new") == 0
    assert convert(tmp_path / "new", tmp_path / "newer") == 1
    assert f"{tmp_path / 'new'}: not a store of an earlier version" in capsys.readouterr().err
    assert convert(tmp_path / "nothing", tmp_path / "newer") == 1
    assert f"{tmp_path / 'nothing' / FORM}: no such file" in capsys.readouterr().err
    assert not (tmp_path / "newer").exists()


def test_an_old_store_is_refused_with_the_command_that_converts_it(old, tmp_path):
    before = contents(old)
    for act in (open_store, read_store_form, lambda directory: create_store(directory, SMALL)):
        with pytest.raises(LampError, match=f"lamp convert-store --store {old} --output NEW"):
            act(old)
    assert contents(old) == before
