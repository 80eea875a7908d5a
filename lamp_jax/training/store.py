"""Training of users' adapters into a store: users' training examples, and the adapters that are kept."""

import contextlib
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from lamp_jax.artifacts import adapters
from lamp_jax.artifacts.adapters import (
    EVERYBODY,
    AdapterEntry,
    AdapterForm,
    AdapterStore,
    check_form,
    create_store,
    open_store,
)
from lamp_jax.config import Devices, Lora
from lamp_jax.data.files import Question
from lamp_jax.errors import LampError
from lamp_jax.inputs.adapters import Pair, User, read_users
from lamp_jax.inputs.batches import Example
from lamp_jax.inputs.generator import reference_of
from lamp_jax.inputs.microbatches import UserExamples
from lamp_jax.models.families import (
    abstract_generator,
    fingerprint_generator,
    load_generator,
    read_generator_config,
)
from lamp_jax.models.lora import adapter_shapes
from lamp_jax.runs.journals import Journal
from lamp_jax.runs.library import TemporaryOutput
from lamp_jax.runs.processes import on_first
from lamp_jax.runs.remote import remove_checkpoints
from lamp_jax.runs.urls import with_urls
from lamp_jax.settings import AdapterTraining
from lamp_jax.sharding import check_divides, model_options
from lamp_jax.tasks.catalog import Task
from lamp_jax.tasks.prompts import PromptTokenizer, build_prompt
from lamp_jax.training.adapters import AdapterCohorts, LearnedAdapters, adapt
from lamp_jax.training.loop import RUN_FILES, check_optimization

FAILED = "failed.jsonl"
"""File in a store's directory with the users whose training failed, and the reasons."""
FILES = (*adapters.FILES, FAILED, *RUN_FILES)
"""Patterns of the files that a training writes to its directory."""


class Trained(NamedTuple):
    """Result of a training."""

    users: int
    """Number of users in the store."""
    items: int
    """Number of examples that the adapters were trained on."""
    failed: list[dict[str, str]]
    """Ids of users whose training failed, and the reasons."""


def check_store_training(options: AdapterTraining) -> None:
    """LampError for invalid values, and for users that do not divide over the current mesh."""
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


def make_form(model: str, lora: Lora, keep: Literal["float32", "bfloat16"]) -> AdapterForm:
    """Form of all adapters of a base model. LampError for a rank or targets that do not fit the model."""
    shapes = adapter_shapes(abstract_generator(read_generator_config(model)), lora)
    targets = tuple(sorted(set(lora.targets)))
    return AdapterForm(fingerprint_generator(model), with_urls(model), lora.rank, lora.alpha, targets, shapes, keep)


def check_store(store: AdapterStore, model: str | Path, *, where: str) -> None:
    """LampError, with `where`, for a store whose adapters were trained for another model."""
    check_form(store.form, replace(store.form, base=fingerprint_generator(model), base_name=str(model)), where=where)
    try:
        wanted = make_form(str(model), store.form.lora, store.form.dtype)
    except LampError as error:
        raise LampError(f"{where}: {error}; copy the store again, or give another one") from None
    check_form(store.form, wanted, where=where)


@dataclass(frozen=True, eq=False, repr=False)
class TrainedStore:
    """Store of users' adapters, and facts of their training."""

    store: AdapterStore
    facts: Mapping[str, Any]
    """`users` and `items` of the store, `users_without_items`, and `users_failed`, whose training failed."""
    temporary: TemporaryOutput | None = None
    """Directory of the store, if it is removed with this object."""

    @property
    def directory(self) -> str:
        return str(self.store.directory)

    @property
    def users(self) -> list[AdapterEntry]:
        """Entries of all adapters: user id, number of items, updates, loss of the last epoch (nats per token)."""
        return list(self.store.scan())

    def __repr__(self) -> str:
        return f"TrainedStore({self.directory!r}, {self.facts['users']} users, {self.facts['items']} items)"


def open_adapters(adapters: "TrainedStore | AdapterStore | str | Path", model: str) -> AdapterStore:
    """Store of a training or directory. LampError for a store whose adapters were trained for another model."""
    if isinstance(adapters, TrainedStore):
        store = adapters.store
    else:
        store = adapters if isinstance(adapters, AdapterStore) else open_store(adapters)
    check_store(store, model, where=str(store.directory))
    return store


def find_user_examples(
    options: AdapterTraining, task: Task, questions: Sequence[Question], tokenizer: Any, *, name: str
) -> tuple[list[UserExamples], int]:
    """Users with training examples from their profiles, and the number of users without any.

    LampError, with `name`, where no user has any.
    """
    if options.shared == "questions":
        pairs = tuple(Pair(one.id, one.input, reference_of(one, name)) for one in questions)
        users = [User(EVERYBODY, pairs)]
    else:
        users = read_users(
            questions,
            task,
            profiles=options.profiles,
            seed=options.seed,
            path=name,
            compatibility=options.compatibility,
            reserved=(EVERYBODY,) if options.shared == "no" else (),
        )
    learning = [user for user in users if user.pairs]
    if not learning:
        raise LampError(f"{name}: no user has a profile item, so there is nothing to train on")
    without = len(users) - len(learning)
    if options.shared == "profiles":
        learning = [User(EVERYBODY, tuple(pair for user in learning for pair in user.pairs))]
    encode = partial(_encode, options, task, PromptTokenizer(tokenizer))
    rows = tqdm(learning, "examples", unit="user", disable=None)
    return [UserExamples(user.id, [encode(pair) for pair in user.pairs]) for user in rows], without


def _encode(options: AdapterTraining, task: Task, tokenizer: PromptTokenizer, pair: Pair) -> Example:
    compatibility, length = options.compatibility, options.max_length
    prompt = build_prompt(task, pair.source, (), tokenizer, max_length=length, compatibility=compatibility)
    target = tokenizer.cut(tokenizer.ids(pair.target), options.target_length)
    return Example(pair.id, array("i", prompt.tokens), array("i", target))  # four bytes per token


def train_store(
    options: AdapterTraining,
    model: str,
    users: Sequence[UserExamples],
    form: AdapterForm,
    *,
    output: Path,
    devices: Devices,
) -> Trained:
    """Trains the users' adapters over `model` on the current mesh into the store in `output`; resumes a run there.

    LampError where every user's training failed.
    """
    with (
        contextlib.closing(create_store(output, form)) as store,
        contextlib.closing(Journal(output / FAILED)) as failed,
    ):
        base = load_generator(model, storage=options.storage, **model_options(devices))
        cohorts = AdapterCohorts(options, base, users)
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
            f"{output / FAILED}: training failed for every user, first for {first['user']!r}: {first['why']}; "
            "try a lower --learning-rate, and --force to start over"
        )
    on_first(lambda: remove_checkpoints(output))
    if not failed.entries:
        on_first(lambda: (output / FAILED).unlink(missing_ok=True))
    return Trained(len(store.entries), on_first(lambda: sum(one.items for one in store.scan())), failed.entries)


def _keep(options: AdapterTraining, store: AdapterStore, failed: Journal, learned: LearnedAdapters) -> None:
    """Appends new adapters to the store: a stopped run may have appended some users of the cohort.

    Users whose training failed are written to `failed`; they do not affect other users.
    """
    noted = store.known([one.user for one in learned.users]) | {entry["user"] for entry in failed.entries}
    places, entries, failures = [], [], []
    for place, (one, fault) in enumerate(zip(learned.users, store.faults(learned.adapters), strict=True)):
        loss = float(learned.losses[place])
        fault = fault if np.isfinite(loss) else "diverged"
        if one.user not in noted and fault:
            failures.append({"user": one.user, "why": fault})
        elif one.user not in noted:
            places.append(place)
            entries.append(AdapterEntry(one.user, len(one.examples), one.updates(options.learning), loss))
    store.append(entries, {name: values[places] for name, values in learned.adapters.items()})
    failed.append(failures)
