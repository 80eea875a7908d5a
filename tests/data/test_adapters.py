"""Adapters of many users on disk: what was appended is read, whatever cut the store off or damaged it."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_jax import processes
from lamp_jax.data.adapters import FORM, NUMBERS, USERS, Entry, Form, check_form, create_store, open_store
from lamp_jax.errors import LampError

SHAPES = {"encoder.attention.query.down": (2, 3, 1), "encoder.attention.query.up": (2, 1, 2, 2)}
SMALL = Form("a1b2", "t5-small", 1, 32.0, ("q",), SHAPES)
TYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def entries_of(*users):
    return [Entry(user, place + 1, 3 * place, place / 7 or None) for place, user in enumerate(users)]


def draw(form, count, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(count, *shape)) for name, shape in form.shapes.items()}


def one_of(adapters, place):
    return {name: values[place : place + 1] for name, values in adapters.items()}


def fill(directory, users, adapters, form=SMALL):
    """Appends each user in a call of its own."""
    with closing(create_store(directory, form)) as store:
        for place, entry in enumerate(entries_of(*users)):
            if entry.user not in store.entries:
                store.append([entry], one_of(adapters, place))


def contents(directory):
    return [(directory / name).read_bytes() for name in (FORM, USERS, NUMBERS)]


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
                assert store.dropped == 0
        with closing(open_store(name)) as store:
            assert store.form == form
            assert list(store.entries.values()) == entries
            assert Path(name, NUMBERS).stat().st_size == len(users) * form.bytes_per_user
            assert_equal(store.read([users[place] for place in places]), adapters, places, form)


def test_a_store_that_grows_is_read_as_it_grows(tmp_path):
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
                store.append([Entry(str(number), np.int64(5), 2, np.float32(0.5))], adapters)
                for name, values in store.read([str(number)]).items():
                    np.testing.assert_array_equal(values, adapters[name].astype(stored))
                assert store.entries[str(number)] == Entry(str(number), 5, 2, 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 4}, "rank 1 in the store, 4 asked for; give the store's values"),
        ({"alpha": 8.0, "rank": 2}, "rank 1 in the store, 2 asked for; alpha 32.0 in the store, 8.0 asked for"),
        ({"targets": ("q", "v")}, "targets q in the store, q v asked for"),
        ({"dtype": "bfloat16"}, "dtype float32 in the store, bfloat16 asked for"),
        ({"shapes": {"other": (1,)}}, r"shape of encoder.attention.query.down \(2, 3, 1\) in the store, none asked"),
        (
            {"base": "c3", "base_name": "t5-base"},
            r"its base model is t5-small, another one than t5-base \(their weights differ\); give the model",
        ),
    ],
)
def test_a_store_of_another_form_is_refused_and_left_alone(tmp_path, change, message):
    create_store(tmp_path, SMALL).close()
    before = (tmp_path / FORM).read_bytes()
    with pytest.raises(LampError, match=message) as caught:
        create_store(tmp_path, replace(SMALL, **change))
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(LampError, match=message):
        check_form(SMALL, replace(SMALL, **change))
    assert (tmp_path / FORM).read_bytes() == before


def test_how_a_base_is_named_and_the_order_of_names_make_no_other_form(tmp_path):
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
def test_a_user_has_one_adapter(store, users, message):
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
    with pytest.raises(LampError, match=r"no adapter of 6 of 7 users \(a, b, c, d, e, \.\.\.\); train or import"):
        store.read(["a", "b", "c", "old", "d", "e", "f"])


def test_a_store_that_is_read_is_not_appended_to(store):
    with (
        closing(open_store(store.directory)) as read,
        pytest.raises(ValueError, match="create_store opens it to append"),
    ):
        read.append([], draw(SMALL, 0))


def test_a_damaged_byte_is_detected(tmp_path):
    fill(tmp_path, "abc", draw(SMALL, 3))
    whole = (tmp_path / NUMBERS).read_bytes()
    for place in range(SMALL.bytes_per_user, 2 * SMALL.bytes_per_user, 7):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        (tmp_path / NUMBERS).write_bytes(damaged)
        with closing(open_store(tmp_path)) as store:
            assert_equal(store.read(["c", "a"]), draw(SMALL, 3), [2, 0])
            with pytest.raises(LampError, match=r"adapters\.bin: the adapter of user 'b' is damaged"):
                store.read(["a", "b"])


def test_numbers_that_vanished_behind_an_open_store_are_damage(tmp_path):
    fill(tmp_path, "abc", draw(SMALL, 3))
    with closing(open_store(tmp_path)) as store:
        (tmp_path / NUMBERS).write_bytes((tmp_path / NUMBERS).read_bytes()[:-1])
        assert_equal(store.read(["b"]), draw(SMALL, 3), [1])
        with pytest.raises(LampError, match="the adapter of user 'c' is damaged"):
            store.read(["c"])


@pytest.fixture(scope="module")
def never_cut(tmp_path_factory):
    directory = tmp_path_factory.mktemp("store") / "never_cut"
    fill(directory, "abc", draw(SMALL, 3))
    return directory


def last_bytes(directory, name):
    """The places where the last append may have been cut off, its beginning included."""
    size = (directory / name).stat().st_size
    last = SMALL.bytes_per_user if name == NUMBERS else len((directory / name).read_bytes().splitlines(True)[-1])
    return range(size - last, size)


def assert_mends(cut, never_cut, dropped):
    """Two users are whole; reading changes nothing; the third can be appended again."""
    before = contents(cut)
    with closing(open_store(cut)) as store:
        assert list(store.entries) == ["a", "b"]
        assert store.dropped == dropped
        assert_equal(store.read(["b", "a"]), draw(SMALL, 3), [1, 0])
    assert contents(cut) == before
    fill(cut, "abc", draw(SMALL, 3))
    assert contents(cut) == contents(never_cut)


def test_a_store_whose_lines_were_cut_off_anywhere_goes_on(never_cut, tmp_path):
    places = last_bytes(never_cut, USERS)
    for place in places:
        cut = tmp_path / str(place)
        shutil.copytree(never_cut, cut)
        (cut / USERS).write_bytes((never_cut / USERS).read_bytes()[:place])
        assert_mends(cut, never_cut, dropped=int(place > places[0]))


@pytest.mark.parametrize("with_line", [True, False])
def test_a_store_whose_numbers_were_cut_off_goes_on(never_cut, tmp_path, with_line):
    places = last_bytes(never_cut, NUMBERS)
    for place in {*places[::5], places[-1]}:
        cut = tmp_path / str(place)
        shutil.copytree(never_cut, cut)
        (cut / NUMBERS).write_bytes((never_cut / NUMBERS).read_bytes()[:place])
        if not with_line:
            (cut / USERS).write_bytes((never_cut / USERS).read_bytes()[: last_bytes(never_cut, USERS)[0]])
        assert_mends(cut, never_cut, dropped=int(with_line))


def test_of_users_who_were_cut_off_together_the_first_are_kept(never_cut, tmp_path):
    with closing(create_store(tmp_path, SMALL)) as store:
        store.append(entries_of(*"abc"), draw(SMALL, 3))
    assert contents(tmp_path) == contents(never_cut)
    lines = (tmp_path / USERS).read_bytes()
    (tmp_path / USERS).write_bytes(lines[: lines.index(b"\n") + 9])
    fill(tmp_path, "abc", draw(SMALL, 3))
    assert contents(tmp_path) == contents(never_cut)


def test_a_store_without_its_numbers_holds_nobody(never_cut, tmp_path):
    shutil.copytree(never_cut, tmp_path, dirs_exist_ok=True)
    (tmp_path / NUMBERS).unlink()
    with closing(open_store(tmp_path)) as store:
        assert (len(store.entries), store.dropped) == (0, 3)


@pytest.mark.parametrize(("users", "kept"), [(3, None), (1, None), (3, 0), (3, 1), (2, 0)])
def test_a_store_that_lost_numbers_is_not_appended_to(never_cut, tmp_path, users, kept):
    """Numbers are on disk before their lines, so that no cut-off append leaves more lines than one without them."""
    shutil.copytree(never_cut, tmp_path, dirs_exist_ok=True)
    lines = (never_cut / USERS).read_bytes().splitlines(True)
    (tmp_path / USERS).write_bytes(b"".join(lines[:users]) + b'{"user": "c", "it')
    if kept is None:
        (tmp_path / NUMBERS).unlink()
    else:
        (tmp_path / NUMBERS).write_bytes((never_cut / NUMBERS).read_bytes()[: (kept + 1) * SMALL.bytes_per_user - 1])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    told = rf"adapters\.bin: has the numbers of {kept or 0} users, and .*users\.jsonl names {users}; copy adapters\.bin"
    with pytest.raises(LampError, match=told):
        create_store(tmp_path, SMALL)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


KILLED = """
import os, signal, sys
from tests.data import test_adapters as tests
from lamp_jax.data.journals import Journal
appended = []
def append(self, entries):
    appended.append(self)
    if len(appended) == 3:
        self._file.write(b'{"user": "c", "it')
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    whole(self, entries)
whole, Journal.append = Journal.append, append
tests.fill(tests.Path(sys.argv[1]), "abc", tests.draw(tests.SMALL, 3))
"""


def test_a_killed_append_loses_its_own_users_alone(never_cut, tmp_path):
    found = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parents[2])
    assert found.returncode == -signal.SIGKILL
    assert (tmp_path / NUMBERS).read_bytes() == (never_cut / NUMBERS).read_bytes()
    assert_mends(tmp_path, never_cut, dropped=1)


TRAINS = """
import sys
from tests.data import test_adapters as tests
with tests.closing(tests.create_store(sys.argv[1], tests.SMALL)) as store:
    adapters = tests.draw(tests.SMALL, 3)
    for place, entry in enumerate(tests.entries_of(*"abc")):
        print(entry.user, flush=True)
        sys.stdin.readline()
        store.append([entry], tests.one_of(adapters, place))
"""


def test_two_commands_do_not_append_to_one_store_at_once(never_cut, tmp_path):
    """Wherever the first one is, also between numbers and their lines, the second changes nothing."""
    words = [sys.executable, "-c", TRAINS, str(tmp_path / "store")]
    where = {"cwd": Path(__file__).parents[2], "text": True, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, **where) as other:
        for user in "abc":
            assert other.stdout.readline() == f"{user}\n"
            before = (tmp_path / "store" / USERS).read_bytes()
            with pytest.raises(LampError, match=r"users\.jsonl: another lamp command is writing to it; wait"):
                create_store(tmp_path / "store", SMALL)
            assert (tmp_path / "store" / USERS).read_bytes() == before
            other.stdin.write("\n")
            other.stdin.flush()
    assert other.returncode == 0
    assert contents(tmp_path / "store") == contents(never_cut)


def test_a_command_of_another_form_does_not_get_in_between(tmp_path):
    """The form is settled by whoever appends first."""
    with closing(create_store(tmp_path, SMALL)):
        (tmp_path / FORM).unlink()
        with pytest.raises(LampError, match="another lamp command is writing to it"):
            create_store(tmp_path, replace(SMALL, rank=4))
        assert not (tmp_path / FORM).exists()


def test_a_directory_without_a_store_is_refused(tmp_path):
    with pytest.raises(LampError, match=r"adapters\.json: no such file; give the directory of a store"):
        open_store(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", [USERS, NUMBERS])
def test_files_that_lost_their_form_are_not_taken_for_another(never_cut, tmp_path, name):
    shutil.copy(never_cut / name, tmp_path)
    with pytest.raises(LampError, match=rf"{name}: stands there without adapters\.json"):
        create_store(tmp_path, SMALL)


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
def test_a_form_that_is_none_is_named(never_cut, tmp_path, change, message):
    whole = json.loads((never_cut / FORM).read_text())
    path = tmp_path / FORM
    path.write_text(json.dumps({**whole, **change}))
    for opened in (open_store, lambda directory: create_store(directory, SMALL)):
        with pytest.raises(LampError, match=message) as caught:
            opened(tmp_path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", ["base", "base_name", "rank", "alpha", "targets", "shapes", "dtype"])
def test_a_form_without_one_of_its_values_is_named(never_cut, tmp_path, key):
    whole = json.loads((never_cut / FORM).read_text())
    (tmp_path / FORM).write_text(json.dumps({name: value for name, value in whole.items() if name != key}))
    with pytest.raises(LampError, match=rf"adapters\.json: without '{key}'"):
        open_store(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", ""])
def test_a_form_that_is_no_object_is_named(tmp_path, text):
    (tmp_path / FORM).write_text(text)
    with pytest.raises(LampError, match=r"adapters\.json: (expected an object|not whole JSON)"):
        open_store(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not whole JSON"),
        (b"[]", "expected an object"),
        (b'{"user": "b"}', "without 'items'"),
        (b'{"user": 1, "items": 1, "updates": 1, "loss": null, "crc32": 1}', "'user' cannot be 1"),
    ],
)
def test_a_line_that_is_none_is_named(never_cut, tmp_path, line, message):
    shutil.copytree(never_cut, tmp_path, dirs_exist_ok=True)
    first, _, third = (tmp_path / USERS).read_bytes().splitlines(True)
    (tmp_path / USERS).write_bytes(first + line + b"\n" + third)
    for opened in (open_store, lambda directory: create_store(directory, SMALL)):
        with pytest.raises(LampError, match=rf"users\.jsonl, line 2: {message}"):
            opened(tmp_path)
    (tmp_path / USERS).write_bytes(first + first)
    with pytest.raises(LampError, match=r"users\.jsonl: user 'a' is there twice"):
        open_store(tmp_path)


def test_of_several_processes_the_first_writes_and_all_read(never_cut, tmp_path, monkeypatch):
    said = {}
    shutil.copytree(never_cut, tmp_path, dirs_exist_ok=True)
    (tmp_path / USERS).write_bytes((never_cut / USERS).read_bytes()[:-1])

    def work():
        with closing(create_store(tmp_path, SMALL)) as store:
            assert store.dropped == 1
            store.append(entries_of(*"abc")[2:], one_of(draw(SMALL, 3), 2))
            assert_equal(store.read(["c", "a"]), draw(SMALL, 3), [2, 0])
            return list(store.entries.values())

    monkeypatch.setattr(processes, "_company", processes.Company(2, 0, said.__setitem__, said.__getitem__))
    assert work() == entries_of(*"abc")
    before = contents(tmp_path)
    assert before == contents(never_cut)
    monkeypatch.setattr(processes, "_company", processes.Company(2, 1, None, said.__getitem__))
    assert work() == entries_of(*"abc")
    assert contents(tmp_path) == before


def test_a_store_is_read_without_jax():
    program = "import sys, lamp_jax.data.adapters; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
