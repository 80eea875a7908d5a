"""`lamp train-adapters`: every user's own LoRA adapter, learned from the user's own profile, many users at a time."""

import contextlib
import math
from array import array
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from tqdm import tqdm

from lamp_jax.artifacts import adapters, old_store
from lamp_jax.artifacts.adapters import (
    EVERYBODY,
    AdapterStore,
    Entry,
    Form,
    count_users,
    create_store,
    open_store,
)
from lamp_jax.config import Lora
from lamp_jax.data.files import read_questions
from lamp_jax.errors import LampError
from lamp_jax.inputs.adapters import Pair, User, read_users
from lamp_jax.inputs.batches import Example
from lamp_jax.inputs.generator import gold_of
from lamp_jax.inputs.microbatches import UserExamples
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.models.families import (
    abstract_generator,
    check_generator_tokenizer,
    fingerprint_generator,
    load_generator,
    read_generator_config,
)
from lamp_jax.models.lora import adapter_shapes
from lamp_jax.options.adapters import TrainAdapters
from lamp_jax.runs.journals import Journal
from lamp_jax.runs.processes import on_first
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.runs.remote import remove_checkpoints
from lamp_jax.runs.urls import with_urls
from lamp_jax.sharding import check_divides, model_layout, open_mesh
from lamp_jax.tasks.catalog import Task, find_task
from lamp_jax.tasks.prompts import PromptTokenizer, build_prompt
from lamp_jax.training.adapters import AdapterCohorts, Learned, adapt
from lamp_jax.training.loop import RUN_FILES, check_optimization

FAILED = "failed.jsonl"
"""Beside a store: whose training came to nothing, and why."""
FILES = (*adapters.FILES, FAILED, *RUN_FILES)
"""What the output directory holds."""


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
        _check(options)
    form = make_form(options.model, options.lora, options.keep)
    tokenizer = load_tokenizer(options.model)
    check_generator_tokenizer(tokenizer, options.model)
    learners, without = read_learners(options, task, tokenizer)
    record.begin()
    output = record.place
    with (
        jax.set_mesh(mesh),
        contextlib.closing(create_store(output, form)) as store,
        contextlib.closing(Journal(output / FAILED)) as failed,
    ):
        model = load_generator(options.model, storage=options.storage, **model_layout(options.devices))
        cohorts = AdapterCohorts(options, model, learners)
        done = {entry["user"] for entry in failed.entries}
        adapt(
            output,
            cohorts,
            known=lambda users: store.known(users) | done,
            keep=partial(_keep, options, store, failed),
        )
    if not store.entries:
        first = failed.entries[0]
        raise LampError(
            f"{output / FAILED}: no user's training came to an adapter: that of {first['user']!r} {first['why']}; "
            "try a lower --learning-rate, and --force to start over"
        )
    on_first(lambda: remove_checkpoints(output))
    if not failed.entries:
        on_first(lambda: (output / FAILED).unlink(missing_ok=True))
    facts = {"users": len(store.entries), "items": on_first(lambda: sum(one.items for one in store.scan()))}
    record.finish(**facts, users_without_items=without, users_failed=len(failed.entries))
    print(f"{options.output}: adapters of {facts['users']} users, from {facts['items']} items")
    if without:
        print(f"{without} users have no profile items, and so no adapter")
    if failed.entries:
        users, path = ", ".join(entry["user"] for entry in failed.entries[:5]), record.output / FAILED
        print(f"{len(failed.entries)} users' training failed ({users}; {path} says why): no adapter of theirs")


def _keep(options: TrainAdapters, store: AdapterStore, failed: Journal, learned: Learned) -> None:
    """Appends to the store those who are not in it: it may have been cut off in the middle of a block.

    Whose training came to nothing is noted, and disturbs no other.
    """
    noted = store.known([one.user for one in learned.learners]) | {entry["user"] for entry in failed.entries}
    places, entries, lost = [], [], []
    for place, (one, fault) in enumerate(zip(learned.learners, store.faults(learned.adapters), strict=True)):
        loss = float(learned.losses[place])
        fault = fault if np.isfinite(loss) else "diverged"
        if one.user not in noted and fault:
            lost.append({"user": one.user, "why": fault})
        elif one.user not in noted:
            places.append(place)
            entries.append(Entry(one.user, len(one.examples), one.updates(options.learning), loss))
    store.append(entries, {name: values[places] for name, values in learned.adapters.items()})
    failed.append(lost)


def _check_imported(output: str) -> None:
    """LampError for a store with adapters that no training could make again."""
    try:
        old = old_store.is_old(Path(output))
        entries = old_store.read_entries(Path(output)) if old else open_store(output).scan()
        imported = [entry.user for entry in entries if not entry.updates]
    except LampError:  # none, or a damaged one: the reason for --force
        return
    if imported:
        raise LampError(
            f"{output}: --force would remove adapters that were imported, those of {count_users(imported)}; export "
            "them first and move the store away, or give another --output"
        )


def _check(options: TrainAdapters) -> None:
    """LampError for numbers that do not fit, before anything is read."""
    learning, lora = options.learning, options.lora
    check_optimization(learning)
    for name, value, fits, wanted in (
        ("users-per-step", options.users_per_step, options.users_per_step >= 1, "1 or more"),
        ("tokens-per-device", options.tokens_per_device, options.tokens_per_device >= 1, "1 or more"),
        ("max-length", options.max_length, options.max_length >= 2, "2 or more"),
        ("target-length", options.target_length, options.target_length >= 2, "2 or more"),
        ("learning-rate", learning.learning_rate, learning.learning_rate > 0, "more than 0"),
        ("warmup-ratio", learning.warmup_ratio, 0 <= learning.warmup_ratio <= 0.5, "from 0 to 0.5"),
        ("alpha", lora.alpha, 0 < lora.alpha < math.inf, "more than 0, and finite"),
        ("dropout", lora.dropout, 0 <= lora.dropout <= 0.99, "from 0 to 0.99"),
        ("seed", options.seed, options.seed >= 0, "0 or more"),
    ):
        if not fits:
            raise LampError(f"--{name} {value}: must be {wanted}")
    check_divides("--users-per-step", options.users_per_step, "data")


def make_form(model: str, lora: Lora, keep: Literal["float32", "bfloat16"]) -> Form:
    """What all adapters of a base have in common. LampError for a rank or targets that do not fit it."""
    shapes = adapter_shapes(abstract_generator(read_generator_config(model)), lora)
    targets = tuple(sorted(set(lora.targets)))
    return Form(fingerprint_generator(model), with_urls(model), lora.rank, lora.alpha, targets, shapes, keep)


def read_learners(options: TrainAdapters, task: Task, tokenizer: Any) -> tuple[list[UserExamples], int]:
    """Who learns what, and how many users have nothing to learn from. LampError where nobody has anything."""
    questions = read_questions(options.questions, task=task, patches=options.compatibility.patches)
    if options.shared == "questions":
        pairs = tuple(Pair(one.id, one.input, gold_of(one, options.questions)) for one in questions)
        users = [User(EVERYBODY, pairs)]
    else:
        users = read_users(
            questions,
            task,
            profiles=options.profiles,
            seed=options.seed,
            path=options.questions,
            compatibility=options.compatibility,
            reserved=(EVERYBODY,) if options.shared == "no" else (),
        )
    learning = [user for user in users if user.pairs]
    if not learning:
        raise LampError(f"{options.questions}: no user has a profile item, so there is nothing to learn from")
    without = len(users) - len(learning)
    if options.shared == "profiles":
        learning = [User(EVERYBODY, tuple(pair for user in learning for pair in user.pairs))]
    encode = partial(_encode, options, task, PromptTokenizer(tokenizer))
    rows = tqdm(learning, "examples", unit="user", disable=None)
    return [UserExamples(user.id, [encode(pair) for pair in user.pairs]) for user in rows], without


def _encode(options: TrainAdapters, task: Task, tokenizer: PromptTokenizer, pair: Pair) -> Example:
    compatibility, length = options.compatibility, options.max_length
    prompt = build_prompt(task, pair.source, (), tokenizer, max_length=length, compatibility=compatibility)
    target = tokenizer.cut(tokenizer.ids(pair.target), options.target_length)
    return Example(pair.id, array("i", prompt.tokens), array("i", target))  # four bytes a token
