"""`lamp convert-store`: conversion of an earlier version's adapter store to this version."""

import contextlib
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from lamp_jax.artifacts import old_store
from lamp_jax.artifacts.adapters import FILES, AdapterEntry, AdapterStore, create_store, read_old_form
from lamp_jax.errors import LampError
from lamp_jax.options.adapters import ConvertStore
from lamp_jax.runs.outputs import read_record
from lamp_jax.runs.records import guard_outputs, reserve

_BLOCK = 2**26
"""Bytes of the adapters that are appended together."""


@guard_outputs
def run(options: ConvertStore) -> None:
    store = Path(options.store)
    record = reserve(
        options.output, options, inputs=[options.store], directory=True, makes=FILES, checked=[old_store.NUMBERS]
    )
    if record.state == "done":
        return print(f"{options.output}: already converted")
    form = read_old_form(store)
    if not old_store.is_old(store):
        raise LampError(f"{store}: not a store of an earlier version, which has {' and '.join(old_store.FILES)}")
    record.begin()
    with contextlib.closing(create_store(record.target, form)) as made:
        _copy(store, made)
        users, incomplete = len(made.entries), old_store.count_lines(store) - len(made.entries)
        items = sum(entry.items for entry in made.scan())
    trained = read_record(store) or {}
    if trained.get("finished") and (incomplete or trained.get("users") != users):
        raise LampError(
            f"{store}: its training finished with adapters of {trained.get('users')} users, but it has adapters of "
            f"{users}; copy the store again"
        )
    record.finish(users=users, items=items)
    print(f"{options.output}: adapters of {users} users")
    if incomplete:
        print(f"{store}: is truncated; incomplete users ({incomplete}) are left out")
    if trained and not trained.get("finished"):
        print(f"{store}: its training is not finished, and can be resumed in the old store only")


def _copy(store: Path, made: AdapterStore) -> None:
    """Appends the users that are not yet in the new store, in their order, some at a time."""
    size, first = made.form.bytes_per_user, len(made.entries)
    entries: list[AdapterEntry] = []
    records: list[np.ndarray] = []
    users = old_store.read_users(store, size, first=first)
    for entry, record in tqdm(users, "users", initial=first, unit="user", disable=None):
        entries.append(entry)
        records.append(record)
        if len(records) * size >= _BLOCK:
            made.append(entries, made.arrays(np.stack(records)))
            entries, records = [], []
    if entries:
        made.append(entries, made.arrays(np.stack(records)))
