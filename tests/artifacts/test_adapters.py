"""Stores of many users' adapters: appended adapters are readable after killed appends; damaged stores are detected."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from lamp_jax.artifacts import adapters as adapters_module
from lamp_jax.artifacts import segments
from lamp_jax.artifacts.adapters import EVERYBODY, FORM, AdapterEntry, AdapterForm, check_form, create_store, open_store
from lamp_jax.errors import LampError
from lamp_jax.runs import processes

SHAPES = {"encoder.attention.query.down": (2, 3, 1), "encoder.attention.query.up": (2, 1, 2, 2)}
SMALL = AdapterForm("a1b2", "t5-small", 1, 32.0, ("q",), SHAPES)
TYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def entries_of(*users):
    return [AdapterEntry(user, place + 1, 3 * place, place / 7 or None) for place, user in enumerate(users)]


def draw(form, count, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(count, *shape)) for name, shape in form.shapes.items()}


def one_of(adapters, place):
    return {name: values[place : place + 1] for name, values in adapters.items()}


def fill(directory, users, adapters, form=SMALL):
    """Appends each user by a separate call."""
    with closing(create_store(directory, form)) as store:
        for place, entry in enumerate(entries_of(*users)):
            if entry.user not in store.entries:
                store.append([entry], one_of(adapters, place))


def contents(directory):
    """Contents of all files except the lock."""
    return {path.name: path.read_bytes() for path in Path(directory).iterdir() if not path.name.endswith(".lock")}


def files(directory, kind="adapters"):
    return sorted(Path(directory).glob(f"{kind}-*.safetensors"))


def assert_equal(found, adapters, places, form=SMALL):
    kind = TYPES[form.dtype]
    assert list(found) == list(form.shapes)
    for name, values in found.items():
        assert values.dtype == kind
        np.testing.assert_array_equal(values, adapters[name][places].astype(kind))


shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)


@st.composite
def forms(draw):
    sites = draw(st.lists(st.text(max_size=5), min_size=1, max_size=3, unique=True))
    found = {f"{site}.{kind}": draw(shapes) for site in sites for kind in ("down", "up")}
    return replace(SMALL, shapes=found, dtype=draw(st.sampled_from(list(TYPES))))


@settings(max_examples=40)
@given(form=forms(), users=st.lists(st.text(max_size=6), max_size=7, unique=True), data=st.data())
def test_random_users_are_read_as_they_were_appended(form, users, data):
    adapters, entries = draw(form, len(users)), entries_of(*users)
    cut = data.draw(st.integers(0, len(users)))
    places = data.draw(st.lists(st.integers(0, len(users) - 1), max_size=9)) if users else []
    with tempfile.TemporaryDirectory() as name:
        for part in (slice(0, cut), slice(cut, None)):
            with closing(create_store(name, form)) as store:
                store.append(entries[part], {name: values[part] for name, values in adapters.items()})
        with closing(open_store(name)) as store:
            assert store.form == form
            assert list(store.entries.values()) == entries
            assert list(store.entries) == users
            tensors = [load_file(path)["numbers"] for path in files(name)]
            assert sum(numbers.nbytes for numbers in tensors) == len(users) * form.bytes_per_user
            assert_equal(store.read([users[place] for place in places]), adapters, places, form)


def test_a_store_open_for_appending_reads_its_appended_adapters(tmp_path):
    adapters, users = draw(SMALL, 3), ["b", "a", "c"]
    with closing(create_store(tmp_path / "deep" / "store", SMALL)) as store:
        assert_equal(store.read([]), adapters, [])
        for place, entry in enumerate(entries_of(*users)):
            store.append([entry], one_of(adapters, place))
            order = list(range(place, -1, -1))
            assert_equal(store.read([users[at] for at in order]), adapters, order)


def test_numbers_of_any_float_type_are_converted(tmp_path):
    for number, kind in enumerate((np.float64, np.float32, np.float16, ml_dtypes.bfloat16)):
        for dtype, stored in TYPES.items():
            adapters = {name: values.astype(kind) for name, values in draw(SMALL, 1).items()}
            with closing(create_store(tmp_path / dtype, replace(SMALL, dtype=dtype))) as store:
                store.append([AdapterEntry(str(number), np.int64(5), 2, np.float32(0.5))], adapters)
                for name, values in store.read([str(number)]).items():
                    np.testing.assert_array_equal(values, adapters[name].astype(stored))
                assert store.entries[str(number)] == AdapterEntry(str(number), 5, 2, 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 4}, "rank 1 in the store, 4 requested; give the store's values"),
        ({"alpha": 8.0, "rank": 2}, "rank 1 in the store, 2 requested; alpha 32.0 in the store, 8.0 requested"),
        ({"targets": ("q", "v")}, "targets q in the store, q v requested"),
        ({"dtype": "bfloat16"}, "dtype float32 in the store, bfloat16 requested"),
        ({"shapes": {"other": (1,)}}, r"shape of encoder.* \(2, 3, 1\) in the store, none requested"),
        (
            {"base": "c3", "base_name": "t5-base"},
            r"its base model is t5-small, not t5-base \(their weights differ\); give the model",
        ),
    ],
)
def test_a_store_of_another_form_is_refused_and_unchanged(tmp_path, change, message):
    create_store(tmp_path, SMALL).close()
    before = (tmp_path / FORM).read_bytes()
    with pytest.raises(LampError, match=message) as caught:
        create_store(tmp_path, replace(SMALL, **change))
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(LampError, match=message):
        check_form(SMALL, replace(SMALL, **change))
    assert (tmp_path / FORM).read_bytes() == before


def test_forms_are_equal_for_any_base_name_and_order_of_targets(tmp_path):
    form = replace(SMALL, targets=("q", "v"))
    create_store(tmp_path, form).close()
    turned = dict(reversed(SHAPES.items()))
    with closing(create_store(tmp_path, replace(form, base_name="./t5", targets=("v", "q"), shapes=turned))) as store:
        assert store.form == form
        assert list(store.form.shapes) == list(SHAPES)


def assert_refused(store, message, entries, adapters):
    before = contents(store.directory)
    with pytest.raises(LampError, match=message):
        store.append(entries, adapters)
    assert contents(store.directory) == before


@pytest.fixture
def store(tmp_path):
    """Holds the user `old`."""
    with closing(create_store(tmp_path, SMALL)) as store:
        store.append(entries_of("old"), draw(SMALL, 1))
        yield store


@pytest.mark.parametrize(
    ("users", "message"),
    [(["new", "old"], "user 'old' has an adapter already"), (["n", "n"], "user 'n' is given twice")],
)
def test_a_user_with_an_adapter_cannot_be_appended_again(store, users, message):
    assert_refused(store, message, entries_of(*users), draw(SMALL, 2))


def test_other_arrays_or_shapes_are_refused(store):
    down, up = SHAPES
    adapters, entries = draw(SMALL, 2), entries_of("a", "b")
    assert_refused(store, f"adapters without {up}", entries, {down: adapters[down]})
    assert_refused(store, "adapters with more;", entries, {**adapters, "more": adapters[up]})
    assert_refused(store, rf"without {up} and with more", entries, {down: adapters[down], "more": adapters[up]})
    message = r"query.up has the shape \[2, 1, 4\], where 2 users of the store have \[2, 2, 1, 2, 2\]"
    assert_refused(store, message, entries, {**adapters, up: adapters[up][:, 0].reshape(2, 1, 4)})
    assert_refused(store, "where 1 users", entries[:1], adapters)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("dtype", TYPES)
def test_numbers_that_are_not_finite_are_refused(tmp_path, dtype, value):
    adapters = draw(SMALL, 2)
    adapters["encoder.attention.query.up"][1, 1, 0, 0, 0] = value
    with closing(create_store(tmp_path, replace(SMALL, dtype=dtype))) as store:
        store.append(entries_of("old"), draw(SMALL, 1))
        message = f"adapter of user 'b' has numbers that are not finite as {dtype}"
        assert_refused(store, message, entries_of("a", "b"), adapters)


@pytest.mark.parametrize("kind", ["down", "up"])
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-42])  # the last is 0 as bfloat16, and not as float32
def test_an_adapter_without_effect_is_refused(tmp_path, kind, value):
    adapters = draw(SMALL, 2)
    adapters[f"encoder.attention.query.{kind}"][1] = value
    with closing(create_store(tmp_path, replace(SMALL, dtype="bfloat16"))) as store:
        store.append(entries_of("old"), draw(SMALL, 1))
        message = f"adapter of user 'b' has no effect: all of its `{kind}` matrices are 0"
        assert_refused(store, message, entries_of("a", "b"), adapters)


def test_one_matrix_of_zeros_among_others_has_effect(tmp_path):
    shapes = {**SHAPES, "decoder.attention.query.down": (1,), "decoder.attention.query.up": (1,)}
    form = replace(SMALL, shapes=shapes)
    adapters = draw(form, 1)
    adapters["decoder.attention.query.up"][:] = 0
    with closing(create_store(tmp_path, form)) as store:
        store.append(entries_of("a"), adapters)


def test_users_without_an_adapter_are_counted_and_named(store):
    with pytest.raises(LampError, match=r"no adapters for 6 of 7 users \(a, b, c, d, e, \.\.\.\); train or import"):
        store.read(["a", "b", "c", "old", "d", "e", "f"])


def test_a_store_that_is_read_is_not_appended_to(store):
    with (
        closing(open_store(store.directory)) as read,
        pytest.raises(ValueError, match="open the store with create_store to append"),
    ):
        read.append([], draw(SMALL, 0))


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 16
    path.write_bytes(data)


def test_a_damaged_byte_is_detected(tmp_path):
    fill(tmp_path, "abc", draw(SMALL, 3))
    shard = files(tmp_path)[1]
    complete, numbers = shard.read_bytes(), load_file(shard)["numbers"].tobytes()
    start = complete.index(numbers)
    for place in range(start, start + len(numbers), 7):
        flip(shard, place)
        with closing(open_store(tmp_path)) as store:
            assert_equal(store.read(["c", "a"]), draw(SMALL, 3), [2, 0])
            with pytest.raises(LampError, match=rf"{shard.name}: the adapter of user 'b' is damaged; copy the store"):
                store.read(["a", "b"])
        shard.write_bytes(complete)


@pytest.mark.parametrize("kind", ["adapters", "index"])
def test_no_damaged_byte_changes_an_answer(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(segments, "CHUNK", 2)
    with closing(create_store(tmp_path, SMALL)) as store:
        store.append(entries_of(*"abcde"), draw(SMALL, 5))
        expected = store.read(list("abcde")), list(store.entries.values())
    (path,) = files(tmp_path, kind)
    complete, refused = path.read_bytes(), 0
    for place in range(len(complete)):
        flip(path, place)
        with closing(open_store(tmp_path)) as store:
            for user, at in zip("abcde", range(5), strict=True):
                try:
                    found = store.read([user])
                    entry = store.entries[user]
                except LampError as error:
                    refused += str(path) in str(error)
                else:
                    assert entry == expected[1][at]
                    for name, values in found.items():
                        np.testing.assert_array_equal(values, expected[0][name][[at]])
            try:
                assert not store.known(["nobody"])
            except LampError:
                refused += 1
        path.write_bytes(complete)
    assert refused > len(complete)


def test_files_removed_from_an_open_store_are_reported_as_damage(tmp_path):
    fill(tmp_path, "abc", draw(SMALL, 3))
    with closing(open_store(tmp_path)) as store:
        _, second, third = files(tmp_path)
        third.write_bytes(third.read_bytes()[:-1])
        second.unlink()
        assert_equal(store.read(["a"]), draw(SMALL, 3), [0])
        with pytest.raises(LampError, match=rf"{third.name}: the file is damaged"):
            store.read(["c"])
        with pytest.raises(LampError, match=rf"{second.name}: no such file; copy the store again"):
            store.read(["b"])


@pytest.fixture(scope="module")
def uninterrupted_store(tmp_path_factory):
    directory = tmp_path_factory.mktemp("store") / "never_cut"
    fill(directory, "abc", draw(SMALL, 3))
    return directory


@pytest.mark.parametrize("kind", ["adapters", "index"])
@pytest.mark.parametrize("lost", ["a file", "bytes", "a byte"])
def test_a_store_without_some_files_is_refused_and_unchanged(uninterrupted_store, tmp_path, kind, lost):
    shutil.copytree(uninterrupted_store, tmp_path, dirs_exist_ok=True)
    path = files(tmp_path, kind)[-1]
    (tmp_path / ".adapters-000000000003-000000000004.safetensors.7.unfinished").write_text("a killed append's")
    if lost == "a file":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: -1 if lost == "a byte" else 5])
    before = contents(tmp_path)
    for opened in (open_store, lambda directory: create_store(directory, SMALL)):
        with pytest.raises(LampError, match=rf"{path.name}: (no such file|has \d+ of \d+ bytes); copy the store again"):
            opened(tmp_path)
    assert contents(tmp_path) == before
    assert not (tmp_path / ".adapters.lamp.lock").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crc32": 1}, "the list of segments is damaged"),
        ({"version": 3}, "store version 3, but this lamp reads version 2"),
        ({"version": None}, "'version' cannot be None"),
        ({"segments": {}}, "'segments' cannot be {}"),
        ({"segments": [1]}, "the list of segments is damaged"),
    ],
)
def test_a_damaged_list_of_segments_is_named(uninterrupted_store, tmp_path, change, message):
    shutil.copytree(uninterrupted_store, tmp_path, dirs_exist_ok=True)
    (tmp_path / FORM).write_text(json.dumps({**json.loads((uninterrupted_store / FORM).read_text()), **change}))
    for opened in (open_store, lambda directory: create_store(directory, SMALL)):
        with pytest.raises(LampError, match=rf"adapters\.json: {message}"):
            opened(tmp_path)


@pytest.mark.parametrize("lost", [slice(0, 1), slice(1, 2), slice(2, 3), slice(5, 6), slice(3, 6)])
def test_a_list_of_segments_with_missing_segments_is_reported_as_damaged(uninterrupted_store, tmp_path, lost):
    shutil.copytree(uninterrupted_store, tmp_path, dirs_exist_ok=True)
    form = json.loads((uninterrupted_store / FORM).read_text())
    del form["segments"][lost]
    form["crc32"] = zlib.crc32("\n".join(form["segments"]).encode())
    (tmp_path / FORM).write_text(json.dumps(form))
    with pytest.raises(LampError, match=r"adapters\.json: the list of segments is damaged"):
        open_store(tmp_path)


# --- killed appends, and readers during an append


class Killed(BaseException):
    pass


@contextmanager
def killed_before(step):
    """Kills the code in the `with` block before its rename or removal number `step`, counted from 0."""
    steps, complete = iter(range(step)), {name: getattr(os, name) for name in ("replace", "unlink")}

    def stop(name):
        def act(*given, **more):
            if next(steps, None) is None:
                raise Killed
            return complete[name](*given, **more)

        return act

    with pytest.MonkeyPatch.context() as patch:
        for name in complete:
            patch.setattr(os, name, stop(name))
        with suppress(Killed):
            yield


def append_or_die(directory, users, seed, step=None):
    """Appends users whose adapters are drawn from the seed; killed before rename or removal number `step`, if any."""
    store = create_store(directory, SMALL)
    with killed_before(10**6 if step is None else step):
        store.append(entries_of(*users), draw(SMALL, len(users), seed))
    for file in store._lock_files:  # as the system does at the end of a process
        file.close()


@pytest.fixture
def small_levels(monkeypatch):
    """Limits so small that a few users cause merges, several chunks and equal hashes."""
    monkeypatch.setattr(adapters_module, "SHARDS", segments.SHARDS._replace(fan_in=2, bytes=2**11))
    monkeypatch.setattr(adapters_module, "INDEX", segments.INDEX._replace(fan_in=3))
    monkeypatch.setattr(segments, "SHARDS", adapters_module.SHARDS)
    monkeypatch.setattr(segments, "INDEX", adapters_module.INDEX)
    monkeypatch.setattr(segments, "CHUNK", 2)
    monkeypatch.setattr(adapters_module, "hash_user", lambda user: zlib.crc32(user) % 7)
    monkeypatch.setattr(segments, "hash_user", lambda user: zlib.crc32(user) % 7)


def assert_contains_exactly(store, oracle):
    """The store has exactly these users."""
    assert list(store.entries) == list(oracle)
    assert list(store.entries.values()) == [entry for entry, _ in oracle.values()]
    assert_reads(store, oracle)
    assert store.known([*oracle, "nobody", "nothing"]) == oracle.keys()


def assert_reads(store, oracle):
    found = store.read(list(oracle))
    for place, (user, (entry, adapter)) in enumerate(oracle.items()):
        assert store.entries[user] == entry
        for name, values in found.items():
            np.testing.assert_array_equal(values[place], adapter[name][0].astype(np.float32))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    appends=st.lists(st.tuples(st.integers(1, 4), st.lists(st.integers(0, 9), max_size=2)), max_size=12),
    opened=st.sets(st.integers(0, 11)),
)
def test_a_store_equals_a_dict_after_any_killed_appends(small_levels, appends, opened):
    """Each append is killed at some steps and repeated; readers opened in between still read all their users."""
    oracle, readers = {}, []
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as undisturbed:
        create_store(name, SMALL).close()
        create_store(undisturbed, SMALL).close()
        for seed, (count, kills) in enumerate(appends):
            users = [f"{seed}.{place}" for place in range(count)]
            for kill in kills:
                append_or_die(name, users, seed, kill)
                with closing(open_store(name)) as store:
                    assert store.known(users) in (set(), set(users))
                    if store.known(users):
                        break
            else:
                append_or_die(name, users, seed)
            append_or_die(undisturbed, users, seed)
            drawn = draw(SMALL, count, seed)
            oracle |= {
                user: (entry, one_of(drawn, place))
                for place, (user, entry) in enumerate(zip(users, entries_of(*users), strict=True))
            }
            if seed in opened:
                readers.append((open_store(name), dict(oracle)))
        create_store(name, SMALL).close()
        create_store(undisturbed, SMALL).close()
        assert contents(name) == contents(undisturbed)
        for store, known in [*readers, (open_store(name), oracle)]:
            assert_reads(store, known)
        assert_contains_exactly(open_store(name), oracle)
        assert len(files(name, "index")) <= (3 - 1) * len("1210")  # of 48 users, to the base of 3 segments
        shards = files(name)
        assert len(shards) <= 4 + sum(path.stat().st_size for path in shards) // 512


def test_the_number_of_files_grows_with_the_logarithm_of_users(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters_module, "SHARDS", segments.SHARDS._replace(fan_in=4))
    with closing(create_store(tmp_path, SMALL)) as store:
        for number in range(4**4 - 1):
            store.append([AdapterEntry(str(number), 1, 1, None)], draw(SMALL, 1, number))
            assert len(store.segments.shards) <= 3 * 4
        assert [segment.users for segment in store.segments.shards] == [64] * 3 + [16] * 3 + [4] * 3 + [1] * 3
        store.append([AdapterEntry("last", 1, 1, None)], draw(SMALL, 1, 255))
        assert [segment.users for segment in store.segments.shards] == [256]
        assert len(files(tmp_path)) == len(files(tmp_path, "index")) == 1
        for number in (0, 77, 254):
            assert_equal(store.read([str(number)]), draw(SMALL, 1, number), [0])


def test_large_shards_are_not_merged(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters_module, "SHARDS", segments.SHARDS._replace(fan_in=2, bytes=3 * 100))
    fill(tmp_path, "abcdefg", draw(SMALL, 7))
    assert [segment.users for segment in open_store(tmp_path).segments.shards] == [2, 2, 2, 1]


KILLED = """
import os, signal, sys
from tests.artifacts import test_adapters as tests
renamed = []
def replace(source, target):
    renamed.append(target)
    if len(renamed) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    whole(source, target)
whole, os.replace = os.replace, replace
tests.fill(tests.Path(sys.argv[1]), "abc", tests.draw(tests.SMALL, 3))
"""


@pytest.mark.parametrize("step", range(1, 11))
def test_a_killed_append_loses_only_its_own_users(uninterrupted_store, tmp_path, step):
    """Each of three appends renames three files; the first renamed file is the form of the empty store."""
    where = {"cwd": Path(__file__).parents[2]}
    found = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(step)], **where)
    assert found.returncode == -signal.SIGKILL
    if step > 1:
        before = contents(tmp_path)
        with closing(open_store(tmp_path)) as store:
            assert list(store.entries) == list("abc")[: (step - 2) // 3]
        assert contents(tmp_path) == before
    fill(tmp_path, "abc", draw(SMALL, 3))
    assert contents(tmp_path) == contents(uninterrupted_store)


APPENDS = """
import sys
from tests.artifacts import test_adapters as tests
with tests.closing(tests.create_store(sys.argv[1], tests.SMALL)) as store:
    for number in range(300):
        store.append([tests.AdapterEntry(str(number), number, 1, None)], tests.draw(tests.SMALL, 1, number))
"""


def test_concurrent_readers_read_appended_adapters(tmp_path):
    create_store(tmp_path, SMALL).close()
    rng, times, kept = np.random.default_rng(0), 0, open_store(tmp_path)
    words = [sys.executable, "-c", APPENDS, str(tmp_path)]
    with subprocess.Popen(words, cwd=Path(__file__).parents[2]) as other:
        while other.poll() is None:
            with closing(open_store(tmp_path)) as store:
                for reader in (store, kept):
                    for number in rng.choice(len(store.entries), 5).tolist() if len(store.entries) else ():
                        if reader is store or number < len(kept.entries):
                            assert_equal(reader.read([str(number)]), draw(SMALL, 1, number), [0])
                            assert reader.entries[str(number)].items == number
                assert not store.known(["nobody"])
                times += 1
            if len(kept.entries) < len(store.entries) - 30:
                kept = store
    assert other.returncode == 0
    assert times > 5
    assert [entry.items for entry in open_store(tmp_path).entries.values()] == list(range(300))


TRAINS = """
import sys
from tests.artifacts import test_adapters as tests
with tests.closing(tests.create_store(sys.argv[1], tests.SMALL)) as store:
    adapters = tests.draw(tests.SMALL, 3)
    for place, entry in enumerate(tests.entries_of(*"abc")):
        print(entry.user, flush=True)
        sys.stdin.readline()
        store.append([entry], tests.one_of(adapters, place))
"""


def test_a_second_command_cannot_append_to_a_store_at_the_same_time(uninterrupted_store, tmp_path):
    """At every step of the first command, also between adapters and their entries, the second changes no file."""
    words = [sys.executable, "-c", TRAINS, str(tmp_path / "store")]
    where = {"cwd": Path(__file__).parents[2], "text": True, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, **where) as other:
        for user in "abc":
            assert other.stdout.readline() == f"{user}\n"
            before = contents(tmp_path / "store")
            with pytest.raises(LampError, match=r"store: another lamp command is writing to it; wait"):
                create_store(tmp_path / "store", SMALL)
            assert contents(tmp_path / "store") == before
            other.stdin.write("\n")
            other.stdin.flush()
    assert other.returncode == 0
    assert contents(tmp_path / "store") == contents(uninterrupted_store)


def test_a_command_cannot_create_a_form_while_another_command_writes(tmp_path):
    """The command that opened the store first decides its form."""
    with closing(create_store(tmp_path, SMALL)):
        (tmp_path / FORM).unlink()
        with pytest.raises(LampError, match="another lamp command is writing to it"):
            create_store(tmp_path, replace(SMALL, rank=4))
        assert not (tmp_path / FORM).exists()


def test_a_directory_without_a_store_is_refused(tmp_path):
    with pytest.raises(LampError, match=r"adapters\.json: no such file; give the directory of a store"):
        open_store(tmp_path)
    assert not any(tmp_path.iterdir())


def test_files_without_a_form_are_refused(uninterrupted_store, tmp_path):
    for path in (*files(uninterrupted_store), *files(uninterrupted_store, "index"), "users.jsonl", "adapters.bin"):
        directory = tmp_path / Path(path).name
        directory.mkdir()
        (directory / directory.name).write_text("a file of a store")
        with pytest.raises(LampError, match=rf"{directory.name}: exists without adapters\.json"):
            create_store(directory, SMALL)
        assert [path.name for path in directory.iterdir()] == [directory.name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": "8"}, "'rank' cannot be '8'"),
        ({"rank": True}, "'rank' cannot be True"),
        ({"alpha": None}, "'alpha' cannot be None"),
        ({"base": 1}, "'base' cannot be 1"),
        ({"targets": ["q", 1]}, "'targets' cannot be"),
        ({"shapes": {}}, "'shapes' cannot be {}"),
        ({"shapes": {"a": 3}}, "'shapes' cannot be {'a': 3}"),
        ({"shapes": {"a": [0]}}, "'shapes' cannot be"),
        ({"shapes": {"a": [2.5]}}, "'shapes' cannot be"),
        ({"dtype": "float16"}, "'dtype' cannot be 'float16'"),
    ],
)
def test_an_invalid_form_is_named(uninterrupted_store, tmp_path, change, message):
    complete = json.loads((uninterrupted_store / FORM).read_text())
    path = tmp_path / FORM
    path.write_text(json.dumps({**complete, **change}))
    for opened in (open_store, lambda directory: create_store(directory, SMALL)):
        with pytest.raises(LampError, match=message) as caught:
            opened(tmp_path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", ["base", "base_name", "rank", "alpha", "targets", "shapes", "dtype"])
def test_a_form_without_a_required_value_is_named(uninterrupted_store, tmp_path, key):
    complete = json.loads((uninterrupted_store / FORM).read_text())
    (tmp_path / FORM).write_text(json.dumps({name: value for name, value in complete.items() if name != key}))
    with pytest.raises(LampError, match=rf"adapters\.json: '{key}' is missing"):
        open_store(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", ""])
def test_a_form_that_is_not_an_object_is_named(tmp_path, text):
    (tmp_path / FORM).write_text(text)
    with pytest.raises(LampError, match=r"adapters\.json: (expected an object|invalid JSON)"):
        open_store(tmp_path)


def test_the_first_of_several_processes_writes_and_all_read(uninterrupted_store, tmp_path, monkeypatch):
    key_values = {}
    shutil.copytree(uninterrupted_store, tmp_path, dirs_exist_ok=True)
    (tmp_path / ".index-000000000003-000000000004.safetensors.7.unfinished").write_text("a killed append's")
    drawn = {name: np.concatenate([values, values[:1]]) for name, values in draw(SMALL, 3).items()}

    def work():
        with closing(create_store(tmp_path, SMALL)) as store:
            assert store.known(["c", "d"]) == {"c"}
            store.append(entries_of(*"abcd")[3:], one_of(drawn, 3))
            assert_equal(store.read(["d", "c", "a"]), drawn, [3, 2, 0])
            assert len(store.entries) == 4
            return list(store.entries.values())

    monkeypatch.setattr(
        processes, "_group", processes.ProcessGroup(2, 0, key_values.__setitem__, key_values.__getitem__)
    )
    assert work() == entries_of(*"abcd")
    before = contents(tmp_path)
    assert not any(name.endswith(".unfinished") for name in before)
    monkeypatch.setattr(processes, "_group", processes.ProcessGroup(2, 1, None, key_values.__getitem__))
    assert work() == entries_of(*"abcd")
    assert contents(tmp_path) == before


def test_a_store_is_read_without_jax():
    program = "import sys, lamp_jax.artifacts.adapters; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_user_without_an_adapter_gets_the_shared_adapter(store):
    assert store.serving(["old", "new", None]) == ["old", None, None]
    store.append([AdapterEntry(EVERYBODY, 1, 1, None)], draw(SMALL, 1, seed=1))
    assert store.serving(["old", "new", None]) == ["old", EVERYBODY, None]
    for name, values in store.read_for(["new", None, "old"]).items():
        np.testing.assert_array_equal(values[0], draw(SMALL, 1, seed=1)[name][0].astype(np.float32))
        assert not values[1].any()
        np.testing.assert_array_equal(values[2], draw(SMALL, 1)[name][0].astype(np.float32))


@pytest.mark.parametrize("items", [2**63, -(2**63)])
def test_numbers_of_items_beyond_64_bits_are_refused(store, items):
    assert_refused(store, "give fewer than 2", [AdapterEntry("a", items, 1, None)], draw(SMALL, 1))
