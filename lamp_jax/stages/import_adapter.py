"""`lamp import-adapter`: import of an adapter saved by Hugging Face's peft into an adapter store."""

import contextlib
from pathlib import Path
from typing import Literal

from lamp_jax.artifacts.adapters import AdapterEntry, create_store, read_store_form
from lamp_jax.models.families import read_generator_config
from lamp_jax.models.peft import read_form, read_peft
from lamp_jax.options.adapters import ImportAdapter
from lamp_jax.runs.outputs import check_apart
from lamp_jax.training.store import make_form


def run(options: ImportAdapter) -> None:
    check_apart([Path(options.store)], [options.directory, options.model])
    config = read_generator_config(options.model)
    lora = read_form(options.directory, config)
    form = make_form(options.model, lora, _kept(options))
    adapter = read_peft(options.directory, config, form.shapes)
    with contextlib.closing(create_store(options.store, form)) as store:
        entry = AdapterEntry(options.user, options.items, updates=0, loss=None)
        store.append([entry], {name: values[None] for name, values in adapter.items()})
        print(f"{options.store}: {len(store.entries)} adapters, with that of {options.user}")


def _kept(options: ImportAdapter) -> Literal["float32", "bfloat16"]:
    """Data type of the adapters in the store."""
    if options.keep != "store":
        return options.keep
    stored = read_store_form(options.store)
    return stored.dtype if stored else "float32"
