"""Fixtures of the tests of work directories at URLs."""

import pytest

from lamp_jax.runs import remote
from tests.bucket import let_orbax_write


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Function that switches to a machine that has only the bucket: another cache."""

    def move(name: str):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    move("first")
    yield move
    remote.send_and_forget()


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    let_orbax_write(monkeypatch)
    (tmp_path / "bucket").mkdir()
    return tmp_path / "bucket"
