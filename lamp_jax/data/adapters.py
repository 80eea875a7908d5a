"""Adapters of many users in one set of files, read at random by user id.

A manifest, `adapters.json`: the form of all of them. A journal, `users.jsonl`: one line for each user. Their numbers
behind each other in the same order, `adapters.bin`: little endian, as many bytes for each user. Numbers are on disk
before their lines, so that a store which was cut off holds whole adapters only.
"""

import contextlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from lamp_jax.config import Lora
from lamp_jax.data.files import glimpse, read_json, write_json
from lamp_jax.data.journals import Journal, whole_lines
from lamp_jax.errors import LampError
from lamp_jax.processes import agree

EVERYBODY = "everybody"
"""The user id of an adapter that all users share who have none of their own."""

FORM, USERS, NUMBERS = "adapters.json", "users.jsonl", "adapters.bin"

_TYPES = {"float32": np.dtype("<f4"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_FORM_KINDS: dict[str, tuple[type, ...]] = {
    "base": (str,),
    "base_name": (str,),
    "rank": (int,),
    "alpha": (float, int),
    "targets": (list, tuple),
    "shapes": (dict,),
    "dtype": (str,),
}
_LINE_KINDS: dict[str, tuple[type, ...]] = {
    "user": (str,),
    "items": (int,),
    "updates": (int,),
    "loss": (float, int, type(None)),
    "crc32": (int,),
}
_SHOWN = 5


@dataclass(frozen=True)
class Form:
    """What all adapters of a store have in common."""

    base: str
    """Fingerprint of the base model's weights."""
    base_name: str
    """How the base model was named: for messages only, never compared."""
    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Names of projections, in any order."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of each array of one adapter, such as `encoder.attention.query.down`, in the order of the file."""
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def bytes_per_user(self) -> int:
        return _TYPES[self.dtype].itemsize * sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def lora(self) -> Lora:
        """What the adapters add, when they are used."""
        return Lora(self.rank, self.alpha, self.targets, dropout=0.0)

    def parts(self) -> Iterator[tuple[str, tuple[int, ...], slice]]:
        """Each array's name, its shape, and where it lies among a user's numbers."""
        start = 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            yield name, shape, slice(start, stop)
            start = stop


@dataclass(frozen=True)
class Entry:
    """What is known of one user's adapter."""

    user: str
    items: int
    """Examples it was trained on."""
    updates: int
    loss: float | None
    """Mean of the last epoch, nats a token; None for an imported one."""


class AdapterStore:
    """The adapters of a directory. Made by `create_store` it can be appended to, by `open_store` it is only read.

    Of several processes the first writes, and all append alike; each reads the files for itself.
    """

    def __init__(self, directory: str | Path, form: Form, *, journal: Journal | None = None):
        self.directory, self.form = Path(directory), form
        self.entries: dict[str, Entry] = {}
        """By user, in the order of the file."""
        self._rows: dict[str, int] = {}
        self._checksums: list[int] = []
        self._journal = journal
        found = agree(self._find) if journal else self._find()
        self.dropped: int = found["dropped"]
        """Lines that were left out on opening: broken off, or without all of their numbers."""
        self._add(found["lines"])
        if journal:
            journal.keep(len(self.entries))

    def append(self, entries: Sequence[Entry], adapters: Mapping[str, np.ndarray]) -> None:
        """Adds users, on disk before this returns: `adapters` holds each array of the form with the users in front.

        Numbers of any float type are converted to the form's. Killed, it leaves the first of these users or none.
        Raises LampError, and adds nobody, for users who are there already, for other arrays or shapes than the form's,
        for numbers that are not finite, and for adapters without effect.
        """
        if self._journal is None:
            raise ValueError(f"{self.directory}: opened to be read; create_store opens it to append")
        users = [entry.user for entry in entries]
        self._check_new(users)
        numbers = self._joined(len(entries), adapters)
        self._check_numbers(users, numbers)
        lines = [_line(entry, zlib.crc32(row)) for entry, row in zip(entries, numbers.view(np.uint8), strict=True)]
        agree(lambda: self._write(numbers))
        self._journal.append(lines)
        self._add(lines)

    def read(self, users: Sequence[str]) -> dict[str, np.ndarray]:
        """The adapters of these users, in this order: each array of the form [n, *its shape], in the form's type.

        LampError for users who have none, with their number, and for one whose bytes are not those that were written.
        """
        unknown = [user for user in users if user not in self._rows]
        if unknown:
            raise LampError(
                f"{self.directory}: no adapter of {len(unknown)} of {len(users)} users ({_first(unknown)}); train or "
                "import theirs, or leave them out"
            )
        numbers = self._records(users).view(_TYPES[self.form.dtype])
        return {name: numbers[:, part].reshape(len(users), *shape) for name, shape, part in self.form.parts()}

    def serving(self, user: str) -> str | None:
        """Whose adapter answers a user's questions: the user's own, else everybody's; None where there is neither."""
        return next((one for one in (user, EVERYBODY) if one in self.entries), None)

    def read_for(self, users: Sequence[str | None]) -> dict[str, np.ndarray]:
        """As `read`, the adapter that serves each user; zeros, which change nothing, for None and who has none."""
        serving = [None if user is None else self.serving(user) for user in users]
        places = [place for place, user in enumerate(serving) if user is not None]
        found = self.read([user for user in serving if user is not None])
        rows = {name: np.zeros((len(users), *values.shape[1:]), values.dtype) for name, values in found.items()}
        for name, values in found.items():
            rows[name][places] = values
        return rows

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    def _find(self) -> dict[str, Any]:
        """The lines whose numbers are there, and how many others.

        LampError where it will be appended to, and more of them have none than a cut-off append leaves.
        """
        path, numbers = self.directory / USERS, self.directory / NUMBERS
        lines = whole_lines(path)
        broken_off = path.exists() and path.stat().st_size > sum(map(len, lines))
        adapters = numbers.stat().st_size // self.form.bytes_per_user if numbers.exists() else 0
        parsed = [_parse_line(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
        if self._journal and (len(parsed) > adapters + 1 or (parsed and not numbers.exists())):
            raise LampError(
                f"{numbers}: has the numbers of {adapters} users, and {path} names {len(parsed)}; "
                f"copy {NUMBERS} again, or make the store again (--force)"
            )
        return {"lines": parsed[:adapters], "dropped": len(parsed[adapters:]) + broken_off}

    def _add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        for line in lines:
            user = line["user"]
            if user in self.entries:
                raise LampError(f"{self.directory / USERS}: user {user!r} is there twice; make the store again")
            self._rows[user] = len(self._rows)
            self._checksums.append(line["crc32"])
            self.entries[user] = Entry(user, line["items"], line["updates"], line["loss"])

    def _check_new(self, users: Sequence[str]) -> None:
        seen: set[str] = set()
        for user in users:
            if user in self.entries:
                raise LampError(f"{self.directory}: user {user!r} has an adapter already; leave the user out")
            if user in seen:
                raise LampError(f"{self.directory}: user {user!r} is given twice; give each user once")
            seen.add(user)

    def _joined(self, count: int, adapters: Mapping[str, np.ndarray]) -> np.ndarray:
        """Arrays [count, ...] -> [count, numbers of a user] in the form's type."""
        missing = [name for name in self.form.shapes if name not in adapters]
        extra = [name for name in adapters if name not in self.form.shapes]
        if missing or extra:
            parts = [f"{what} {_first(names)}" for what, names in (("without", missing), ("with", extra)) if names]
            raise LampError(f"{self.directory}: adapters {' and '.join(parts)}; give the arrays of the store's form")
        size = sum(math.prod(shape) for shape in self.form.shapes.values())
        numbers = np.empty((count, size), _TYPES[self.form.dtype])
        for name, shape, part in self.form.parts():
            values = np.asarray(adapters[name])
            if values.shape != (count, *shape):
                raise LampError(
                    f"{self.directory}: {name} has the shape {list(values.shape)}, where {count} users of the store "
                    f"have {[count, *shape]}; give adapters of the store's form"
                )
            with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is checked
                numbers[:, part] = values.reshape(count, math.prod(shape))
        return numbers

    def faults(self, adapters: Mapping[str, np.ndarray]) -> list[str]:
        """What is wrong with each of these adapters [n, ...], for which `append` would refuse it; else empty."""
        return list(map(self._fault, self._joined(len(next(iter(adapters.values()))), adapters)))

    def _fault(self, row: np.ndarray) -> str:
        """Of what will be written, [numbers of a user]: rounding may make infinities, and zeros."""
        if not np.isfinite(row).all():
            return f"has numbers that are not finite as {self.form.dtype}"
        for kind in ("down", "up"):
            parts = [part for name, _, part in self.form.parts() if name.endswith(f".{kind}")]
            if parts and not any(row[part].any() for part in parts):
                return f"has no effect: all of its `{kind}` matrices are 0"
        return ""

    def _check_numbers(self, users: Sequence[str], numbers: np.ndarray) -> None:
        for user, row in zip(users, numbers, strict=True):
            if fault := self._fault(row):
                raise LampError(
                    f"{self.directory}: adapter of user {user!r} {fault}; train it again, or leave the user out"
                )

    def _write(self, numbers: np.ndarray) -> None:
        with open(self.directory / NUMBERS, "ab") as file:
            file.truncate(len(self.entries) * self.form.bytes_per_user)  # of a cut-off append numbers may be left
            file.write(numbers.view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())

    def _records(self, users: Sequence[str]) -> np.ndarray:
        """[n, bytes of a user] uint8, checked."""
        path, size = self.directory / NUMBERS, self.form.bytes_per_user
        records = np.empty((len(users), size), np.uint8)
        if not users:
            return records
        with open(path, "rb", buffering=0) as file:  # a map of it would be fetched from a disk page by page
            for user, record in zip(users, records, strict=True):
                row = self._rows[user]
                count = os.preadv(file.fileno(), [record.data], row * size)
                if count != size or zlib.crc32(record.data) != self._checksums[row]:
                    raise LampError(
                        f"{path}: the adapter of user {user!r} is damaged; copy the store again, or make it again"
                    )
        return records


def create_store(directory: str | Path, form: Form) -> AdapterStore:
    """A store to append to: a new one, or that which stands there, if it is of this form (check_form).

    LampError while another command appends to it (nothing is looked at before that is certain), and for one that has
    lost numbers, which is left as it is.
    """
    directory = Path(directory)
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(contextlib.closing(Journal(directory / USERS)))
        contents = agree(lambda: _settle(directory, form))
        store = AdapterStore(directory, _parse_form(contents, directory / FORM), journal=journal)
        stack.pop_all()
    return store


def open_store(directory: str | Path) -> AdapterStore:
    """The store that stands there, to read: no file is changed. LampError where there is none, or no whole form."""
    form = read_store_form(directory)
    if form is None:
        path = Path(directory) / FORM
        raise LampError(f"{path}: no such file; give the directory of a store, as `lamp train-adapters` makes it")
    return AdapterStore(directory, form)


def read_store_form(directory: str | Path) -> Form | None:
    """What the adapters of a store have in common; None where there is no store. LampError for no whole form."""
    path = Path(directory) / FORM
    return _parse_form(read_json(path), path) if path.exists() else None


def check_form(store: Form, wanted: Form, *, where: str | Path = "the store") -> None:
    """LampError, with all that differs and both values, unless adapters of one form are those of the other.

    How the base is named makes no difference, nor does the order of targets and arrays.
    """
    problems, remedy = [], "give the store's values, or another store"
    if store.base != wanted.base:
        remedy = "give the model that it was made with, or another store"
        problems.append(
            f"its base model is {store.base_name}, another one than {wanted.base_name} (their weights differ)"
        )
    problems += [
        f"{name} {here} in the store, {asked} asked for"
        for name, here, asked in _compared(store, wanted)
        if here != asked
    ]
    if problems:
        raise LampError(f"{where}: {'; '.join(problems)}; {remedy}")


def count_users(users: Sequence[str]) -> str:
    """How many they are, and the first few, as it may stand in a message."""
    return f"{len(users)} users" + (f" ({_first(users)})" if users else "")


def _compared(store: Form, wanted: Form) -> Iterator[tuple[str, Any, Any]]:
    """What makes a form, but for the base, by name, of both; of many shapes that differ the first few."""
    for name in ("rank", "alpha", "dtype"):
        yield name, getattr(store, name), getattr(wanted, name)
    yield "targets", " ".join(sorted(set(store.targets))), " ".join(sorted(set(wanted.targets)))
    shapes = [
        (f"shape of {name}", store.shapes.get(name, "none"), wanted.shapes.get(name, "none"))
        for name in {**store.shapes, **wanted.shapes}
    ]
    yield from [one for one in shapes if one[1] != one[2]][:_SHOWN]


def _settle(directory: Path, form: Form) -> dict[str, Any]:
    """The form of the store that stands there, which is written where there is none, as JSON."""
    path, contents, stored = directory / FORM, _form_contents(form), read_store_form(directory)
    if stored:
        check_form(stored, form, where=directory)
        return _form_contents(stored)
    for name in (USERS, NUMBERS):
        if (directory / name).exists() and (directory / name).stat().st_size:
            raise LampError(f"{directory / name}: stands there without {FORM}; bring that back, or move this away")
    _parse_form(contents, path)
    write_json(path, contents)
    return contents


def _form_contents(form: Form) -> dict[str, Any]:
    return {**vars(form), "shapes": dict(form.shapes)}


def _parse_form(contents: Any, path: Path) -> Form:
    _check_kinds(contents, _FORM_KINDS, str(path))
    targets, shapes, dtype = contents["targets"], contents["shapes"], contents["dtype"]
    sizes = [size for shape in shapes.values() for size in (shape if isinstance(shape, list | tuple) else (None,))]
    for name, right in (
        ("targets", all(type(target) is str for target in targets)),
        ("shapes", bool(shapes) and all(type(size) is int and size > 0 for size in sizes)),
        ("dtype", dtype in _TYPES),
        ("rank", contents["rank"] >= 1),
        ("alpha", 0 < contents["alpha"] < math.inf),
    ):
        if not right:
            raise _not_whole(str(path), name, contents[name])
    return Form(
        base=contents["base"],
        base_name=contents["base_name"],
        rank=contents["rank"],
        alpha=float(contents["alpha"]),
        targets=tuple(targets),
        shapes={name: tuple(shape) for name, shape in shapes.items()},
        dtype=dtype,
    )


def _line(entry: Entry, checksum: int) -> dict[str, Any]:
    return {
        "user": entry.user,
        "items": int(entry.items),  # may be numpy's, which JSON does not know
        "updates": int(entry.updates),
        "loss": None if entry.loss is None else float(entry.loss),
        "crc32": checksum,
    }


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        contents = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LampError(f"{where}: not whole JSON ({error}); copy the store again, or make it again") from None
    _check_kinds(contents, _LINE_KINDS, where)
    return contents


def _check_kinds(contents: Any, kinds: Mapping[str, tuple[type, ...]], where: str) -> None:
    if not isinstance(contents, dict):
        raise LampError(f"{where}: expected an object, found {glimpse(contents)}; copy the store again")
    for name, allowed in kinds.items():
        if name not in contents:
            raise LampError(f"{where}: without {name!r}; copy the store again, or make it again")
        if type(contents[name]) not in allowed:
            raise _not_whole(where, name, contents[name])


def _not_whole(where: str, name: str, value: Any) -> LampError:
    return LampError(f"{where}: {name!r} cannot be {glimpse(value)}; copy the store again, or make it again")


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
