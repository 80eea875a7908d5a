"""`lamp export-adapter`: a user's adapter as a directory that Hugging Face's peft loads."""

from lamp_jax.artifacts.adapters import FORM, open_store
from lamp_jax.models.families import read_generator_config
from lamp_jax.models.peft import FILES, write_peft
from lamp_jax.options.adapters import ExportAdapter
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.runs.remote import fetch_input
from lamp_jax.runs.urls import with_urls
from lamp_jax.stages.generate import open_adapters


@guard_outputs
def run(options: ExportAdapter) -> None:
    model = options.model or fetch_input(open_store(options.store).form.base_name)
    store = open_adapters(options.store, model)
    adapter = {name: values[0] for name, values in store.read([options.user]).items()}
    inputs, reads = [f"{options.store}/{FORM}"], [options.store, model]
    record = reserve(options.output, options, inputs=inputs, reads=reads, directory=True, makes=FILES)
    if record.state == "done":
        return print(f"{options.output}: already exported")
    record.begin()
    write_peft(record.target, adapter, read_generator_config(model), store.form.lora, base=with_urls(model))
    record.finish()
    print(f"{options.output}: the adapter of {options.user}, for PeftModel.from_pretrained(base, ...)")
