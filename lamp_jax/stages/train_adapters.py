"""`lamp train-adapters`: one LoRA adapter per user, trained on the user's own profile, many users at once."""

from pathlib import Path

import jax

from lamp_jax.artifacts import old_store
from lamp_jax.artifacts.adapters import count_users, open_store
from lamp_jax.data.files import read_questions
from lamp_jax.errors import LampError
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.models.families import check_generator_tokenizer
from lamp_jax.options.adapters import TrainAdapters
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.sharding import open_mesh
from lamp_jax.tasks.catalog import find_task
from lamp_jax.training.store import FAILED, FILES, check_store_training, find_user_examples, make_form, train_store


@guard_outputs
def run(options: TrainAdapters) -> None:
    task = find_task(options.task)
    record = reserve(options.output, options, inputs=[options.questions, options.model], directory=True, makes=FILES)
    if record.state == "done":
        return print(f"{options.output}: already trained")
    if options.force:
        _check_imported(options.output)
    mesh = open_mesh(options.devices)
    with jax.set_mesh(mesh):
        check_store_training(options)
    form = make_form(options.model, options.lora, options.keep)
    tokenizer = load_tokenizer(options.model)
    check_generator_tokenizer(tokenizer, options.model)
    questions = read_questions(options.questions, task=task, patches=options.compatibility.patches)
    users, without = find_user_examples(options, task, questions, tokenizer, name=options.questions)
    record.begin()
    with jax.set_mesh(mesh):
        trained = train_store(options, options.model, users, form, output=record.target, devices=options.devices)
    facts = {"users": trained.users, "items": trained.items}
    record.finish(**facts, users_without_items=without, users_failed=len(trained.failed))
    print(f"{options.output}: adapters of {trained.users} users, from {trained.items} items")
    if without:
        print(f"{without} users have no profile items, and so no adapter")
    if trained.failed:
        names, path = ", ".join(entry["user"] for entry in trained.failed[:5]), record.output / FAILED
        print(f"training failed for {len(trained.failed)} users, who have no adapter ({names}; reasons in {path})")


def _check_imported(output: str) -> None:
    """LampError for a store with imported adapters, which training cannot restore."""
    try:
        old = old_store.is_old(Path(output))
        entries = old_store.read_entries(Path(output)) if old else open_store(output).scan()
        imported = [entry.user for entry in entries if not entry.updates]
    except LampError:  # no store, or a damaged one, which --force is to replace
        return
    if imported:
        raise LampError(
            f"{output}: --force would remove adapters that were imported, those of {count_users(imported)}; export "
            "them first and move the store away, or give another --output"
        )
