"""The training of many users' adapters: block after block of users, each from the first update to the last."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from lamp_jax.checkpoints import Checkpoints
from lamp_jax.config import TrainAdapters
from lamp_jax.data.remote import CHECKPOINTS
from lamp_jax.errors import Preempted
from lamp_jax.hosts import read, watch
from lamp_jax.inputs.rounds import Block, Learner, fit_shapes, make_blocks
from lamp_jax.loop import Log, NoLog, abstract
from lamp_jax.models.lora import adapter_shapes, adapter_specs, draw_adapter
from lamp_jax.models.t5 import T5
from lamp_jax.processes import agree, is_first
from lamp_jax.sharding import own_rows, place_batch, put, shards
from lamp_jax.steps.adapters import AdapterState, Part, Users, make_adapter_update, start_users

_SAVE_SECONDS = 600.0  # between the checkpoints of users who are still learning


class Learned(NamedTuple):
    """The adapters of users who are done: arrays [n, ...], and each user's mean loss of the last epoch, [n]."""

    learners: Sequence[Learner]
    adapters: dict[str, np.ndarray]
    losses: np.ndarray


class Company:
    """All users of a run and the base that they share, on the current mesh."""

    def __init__(self, options: TrainAdapters, model: T5, learners: Sequence[Learner]):
        self.options, self.rules, self.devices = options, model.rules, shards(model.rules.batch)
        self.shapes, self._specs = adapter_shapes(model, options.lora), adapter_specs(model, options.lora)
        graph, self._base = nnx.split(model)
        shared = options.shared != "no"
        self._update = make_adapter_update(
            graph, options.learning, options.lora, seed=options.seed, shared=shared, rules=self.rules
        )
        room = -(-min(options.users_per_step, len(learners)) // self.devices) * self.devices
        batch = options.learning.batch_size
        most = -(-batch // self.devices) if shared else room // self.devices * batch
        rows = (row for one in learners for row in one.examples)
        parts = fit_shapes(rows, tokens=options.tokens_per_device, most=most)
        self.blocks = [
            Block(users, room, parts, options.learning, options.seed, self.devices, shared)
            for users in make_blocks(learners, room, options.learning)
        ]
        self.computed, self.real = 0, 0  # tokens, and those of them that are no padding, of this process

    def start(self, block: Block) -> AdapterState:
        """The state before a block's first update; a user's first values depend on the seed and the user's id alone."""
        adapters = {name: np.zeros((block.size, *shape), np.float32) for name, shape in self.shapes.items()}
        for place, learner in zip(block.places, block.learners, strict=True):
            rng = np.random.default_rng([self.options.seed, learner.key])
            for name, values in draw_adapter(rng, self.shapes).items():
                adapters[name][slice(None) if block.shared else place] = values
        placed = {name: put(values, self._specs[name]) for name, values in adapters.items()}
        return start_users(placed, self.options.learning, self.rules)

    def turn(self, state: AdapterState, number: int, block: Block, turn: int) -> AdapterState:
        """One update of everybody in block `number` who still learns."""
        users = (block.totals, block.warmups, block.learns(turn), block.counts(turn))
        placed = Users(*(put(values, self.rules.spec("batch")) for values in users))
        parts = list(block.parts(turn, own_rows))
        for place, rows in enumerate(parts):
            self.computed += rows.source.size + rows.target.size
            self.real += np.count_nonzero(rows.source) + np.count_nonzero(rows.target)
            part = Part(*place_batch(tuple(rows), rules=self.rules))
            where, last = np.array([number, turn, place], np.int32), np.bool_(place + 1 == len(parts))
            state = self._update(state, self._base, part, placed, where, last)
        return state

    def finish(self, state: AdapterState, block: Block) -> Learned:
        """What a block's users have learned."""
        losses = read(state.loss)
        losses = np.full(len(losses), losses.sum()) if block.shared else losses
        adapters = {name: read(values)[block.places] for name, values in state.adapters.items()}
        return Learned(block.learners, adapters, (losses / np.maximum(block.counted, 1))[block.places])

    @property
    def padding(self) -> float:
        """The share of padding in all tokens that were computed."""
        return 1 - self.real / self.computed if self.computed else 0.0


def adapt(output: Path, company: Company, *, known: Callable[[str], bool], keep: Callable[[Learned], None]) -> None:
    """Trains all users that are not `known`, and gives those of each block to `keep`; logs and checkpoints in `output`.

    A block that was stopped goes on behind its newest checkpoint. Preempted, with all on disk, where SIGTERM ended it.
    """
    users = sum(len(block.learners) for block in company.blocks)
    with (
        watch() as must_stop,
        closing(Checkpoints(output / CHECKPOINTS)) as checkpoints,
        closing(Log(output) if is_first() else NoLog()) as log,
        tqdm(total=users, desc="adapters", unit="user", disable=None) as bar,
    ):
        asked, step = count(1), 0  # the numbers that must_stop is asked about follow each other
        for number, block in enumerate(company.blocks):
            step += len(block)
            if all(known(learner.user) for learner in block.learners):
                bar.update(len(block.learners))
                continue
            state, first = _resume(checkpoints, company.start(block), number)
            bar.update(int(np.count_nonzero(block.totals[block.places] <= first)))
            saved = time.monotonic()
            for turn in range(first, len(block)):
                state = company.turn(state, number, block, turn)
                bar.update(_finished(block, turn))
                stop, done = must_stop(next(asked)), turn + 1 == len(block)
                if not done and (stop or _is_due(saved)):
                    progress = {"block": number, "turn": turn + 1, "users": block.size}
                    checkpoints.save(step - len(block) + turn + 1, state, progress)
                    saved = time.monotonic()
                if stop and not done:
                    raise Preempted
            learned = company.finish(state, block)
            keep(learned)
            log.write(step, {"loss": float(learned.losses.mean()), "padding": company.padding})
            if stop and number + 1 < len(company.blocks):
                raise Preempted


def _resume(checkpoints: Checkpoints, state: AdapterState, number: int) -> tuple[AdapterState, int]:
    """A block's state and how many of its updates are made: those of the newest checkpoint, if it is of this block.

    And of as many users: fewer users than devices are padded to those, and begin again on another number of them.
    """
    progress = checkpoints.progress
    if progress is None or progress["block"] != number:
        return state, 0
    if progress["users"] != len(state.step):
        print(f"the checkpoint is of another number of devices ({progress['users']}): beginning again")
        return state, 0
    restored = checkpoints.restore(jax.tree.map(abstract, state))
    if restored is None:
        return state, 0
    print(f"going on behind update {progress['turn']} of block {number + 1}")
    return restored[0], progress["turn"]


def _finished(block: Block, turn: int) -> int:
    """How many users made their last update."""
    return int(np.count_nonzero(block.totals[block.places] == turn + 1))


def _is_due(saved: float) -> bool:
    return agree(lambda: time.monotonic() - saved > _SAVE_SECONDS)
