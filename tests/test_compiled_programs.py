"""Compilation cache: complete entries only, from any number of processes; never a failure; the same digits."""

import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compilation_cache

from lamp_jax.compiled_programs import OFF, VARIABLE, ProgramCache, use_compilation_cache
from lamp_jax.errors import LampError
from tests.steps.test_meshes import ALONE, learn


def keys(cache: ProgramCache, count: int) -> list[str]:
    return [key for key in (f"jit_f-{number}" for number in range(count)) if cache.get(key)]


@pytest.fixture
def settings(compiled):
    """The tests' own cache, used again after a test that uses another."""
    yield
    use_compilation_cache(compiled)


def test_a_program_is_read_by_another_process_and_replaced(tmp_path):
    first, second = (ProgramCache(tmp_path / "a" / "b", max_bytes=1000) for _ in range(2))
    assert first.get("jit_f-1") is None
    first.put("jit_f-1", b"program")
    first.put(f"jit_{'long' * 99}-1", b"named by its first letters")
    assert second.get("jit_f-1") == b"program"
    assert second.get(f"jit_{'long' * 99}-1") == b"named by its first letters"
    assert second.get("jit_f-2") is None
    second.put("jit_f-1", b"another")
    assert first.get("jit_f-1") == b"another"
    assert (tmp_path / "a" / "b").stat().st_mode & 0o77 == 0


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"", lambda content: content[::-1]])
def test_a_damaged_program_is_compiled_and_written_again(tmp_path, damage):
    cache = ProgramCache(tmp_path, max_bytes=1000)
    cache.put("jit_f-1", b"program")
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get("jit_f-1") is None
    cache.put("jit_f-1", b"program")
    assert cache.get("jit_f-1") == b"program"


def test_programs_for_another_processor_are_not_read(tmp_path, monkeypatch):
    ProgramCache(tmp_path, max_bytes=1000).put("jit_f-1", b"program")
    monkeypatch.setattr("lamp_jax.compiled_programs._processor", lambda: "another")
    assert ProgramCache(tmp_path, max_bytes=1000).get("jit_f-1") is None


def test_programs_that_were_not_used_for_longest_are_removed_and_nothing_else(tmp_path):
    (tmp_path / "mine.txt").write_bytes(bytes(5000))
    abandoned, recent = tmp_path / ".a.program.unfinished", tmp_path / ".b.program.unfinished"
    for path in (abandoned, recent):
        path.write_bytes(b"half")
    os.utime(abandoned, (0, 0))
    cache = ProgramCache(tmp_path, max_bytes=980)
    for number in range(9):
        cache.put(f"jit_f-{number}", bytes(96))
        os.utime(cache._file(f"jit_f-{number}"), (number + 1, number + 1))
    assert keys(cache, 1) == ["jit_f-0"]  # used now
    ProgramCache(tmp_path, max_bytes=980).put("jit_f-9", bytes(96))
    assert keys(cache, 10) == [f"jit_f-{number}" for number in (0, 4, 5, 6, 7, 8, 9)]
    cache.put("jit_f-9", bytes(981))  # alone more than the bound
    assert cache.get("jit_f-9") == bytes(96)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".program") == [recent.name, "mine.txt"]


def test_writers_at_once_leave_complete_programs(tmp_path):
    wrong: list[bytes] = []

    def work(letter: bytes) -> None:
        cache = ProgramCache(tmp_path, max_bytes=300_000)
        for number in range(40):
            cache.put(f"jit_f-{number % 3}", letter * 90_000)
            found = cache.get(f"jit_f-{number % 3}")
            if found is not None and len(set(found)) * 90_000 != len(found):
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert keys(ProgramCache(tmp_path, max_bytes=300_000), 3)
    assert {path.suffix for path in tmp_path.iterdir()} == {".program"}


def test_a_failure_to_write_is_reported_once(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()  # in a test that may run as root, which writes to any directory
    cache = ProgramCache(tmp_path / "file" / "cache", max_bytes=1000)
    for number in range(3):
        cache.put(f"jit_f-{number}", b"program")
        assert cache.get(f"jit_f-{number}") is None
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{tmp_path}/file/cache: compiled programs are not kept (Not a directory)" in error

    def full(*paths):
        raise OSError(28, "No space left on device")

    cache = ProgramCache(tmp_path / "full", max_bytes=1000)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        cache.put("jit_f-1", b"program")
    assert "(No space left on device); make room, or give" in capsys.readouterr().err
    assert not list((tmp_path / "full").iterdir())


def test_the_place_is_the_options_then_the_variables_then_the_users_cache(settings, tmp_path):
    def place() -> str:
        return jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]

    environment = {VARIABLE: str(tmp_path / "variable"), "XDG_CACHE_HOME": str(tmp_path / "user")}
    use_compilation_cache(str(tmp_path / "option"), environment)
    assert place() == str(tmp_path / "option")
    use_compilation_cache("", environment)
    assert place() == str(tmp_path / "option"), "what an earlier call or JAX_COMPILATION_CACHE_DIR said"
    use_compilation_cache(OFF, environment)
    assert place() is None
    use_compilation_cache("", environment)
    assert place() == str(tmp_path / "variable")
    use_compilation_cache(OFF)
    use_compilation_cache("", {**environment, VARIABLE: OFF})
    assert place() is None
    use_compilation_cache("", {**environment, VARIABLE: ""})
    assert place() == str(tmp_path / "user" / "lamp" / "compiled")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for given in (str(tmp_path / "file"), "gs://bucket/cache"):
        with pytest.raises(LampError, match=f"--compilation-cache {given}: not a directory of this machine"):
            use_compilation_cache(given)


def test_jax_reads_what_it_has_written(settings, tmp_path):
    """Otherwise jax has changed where it looks for its cache."""
    x = jnp.linspace(0, 1, 99)

    def make():
        def brand_new(x):
            return jnp.sin(x) @ jnp.exp(x)

        return jax.jit(brand_new)

    use_compilation_cache(OFF)
    expected, events = np.asarray(make()(x)), []
    jax.monitoring.register_event_listener(listener := lambda event, **facts: events.append(event))
    try:
        for hits in (0, 1):
            events.clear()
            use_compilation_cache(str(tmp_path / "cache"))
            assert isinstance(compilation_cache._cache, ProgramCache)
            np.testing.assert_array_equal(np.asarray(make()(x)), expected)
            assert events.count("/jax/compilation_cache/cache_hits") == hits
            assert any(path.name.startswith("jit_brand_new-") for path in (tmp_path / "cache").iterdir())
    finally:
        jax.monitoring.unregister_event_listener(listener)


@pytest.mark.slow
def test_updates_have_the_same_digits_without_cache_with_a_new_and_with_a_full_one(settings, tmp_path):
    def train(place: str) -> list[np.ndarray]:
        use_compilation_cache(place)
        jax.clear_caches()
        with ALONE.open():
            return jax.tree.leaves(jax.device_get(tuple(learn("generator"))))

    expected = train(OFF)
    inodes = []
    for _ in range(2):
        for found, wanted in zip(train(str(tmp_path)), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        inodes.append({path.name: path.stat().st_ino for path in tmp_path.iterdir()})
    assert any(name.startswith("jit_update-") for name in inodes[0])
    assert inodes[0] == inodes[1], "the second training compiled nothing"
