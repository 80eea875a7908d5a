"""Fine-tuning against transformers: a step of fixed length, and epochs of uneven examples; equal gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lamp_jax.bench.cases import Case, Dtype, Partial, Run, Side, Size, close_values
from lamp_jax.bench.flops import Products
from lamp_jax.bench.models import SEED, draw_tokens, made_generator, published
from lamp_jax.bench.workers import Workers
from lamp_jax.inputs.batches import Batch, Example, TrainingBatches, pad_rows

LENGTHS = {
    "fixed": (256, 0.0, 32, 0.0),
    "LaMP-4": (320, 0.45, 14, 0.3),
    "LaMP-7": (150, 0.3, 24, 0.35),
}
"""Median and log-normal spread of prompts' lengths, with four items, and the same of answers', in tokens."""
MAX_LENGTH = 512


@dataclass(frozen=True)
class Training:
    """Updates on `batches` batches of an epoch of `examples` examples."""

    name: str
    lengths: str
    examples: int
    batch: int
    batches: int
    model: str = "t5-small"
    tiny: bool = False
    dtype: Dtype = "float32"
    cuda: bool = False
    shorter: int = 1
    """Divisor of all lengths."""
    relative: float = 1e-3
    """Largest relative difference of the loss and of any gradient's norm."""


SIZES: dict[Size, tuple[Training, ...]] = {
    "smoke": (
        Training("tiny, a sample of LaMP-4's lengths", "LaMP-4", 24, 4, 2, tiny=True, shorter=8),
        Training("tiny, bfloat16", "fixed", 4, 4, 1, tiny=True, shorter=8, dtype="bfloat16", relative=0.1),
    ),
    "full": (
        Training("T5-small, a step of 8 x (256 + 32)", "fixed", 8, 8, 1),
        Training("T5-small, epoch of 1,000, LaMP-4's lengths", "LaMP-4", 1000, 8, 4),
        Training("T5-small, epoch of 1,000, LaMP-7's lengths", "LaMP-7", 1000, 8, 6),
    ),
    "gpu": (
        Training(
            "FLAN-T5-base, a step of 64 x (256 + 32)", "fixed", 64, 64, 1, "flan-t5-base", dtype="bfloat16", cuda=True
        ),
        Training(
            "FLAN-T5-large, a step of 64 x (256 + 32)", "fixed", 64, 64, 1, "flan-t5-large", dtype="bfloat16", cuda=True
        ),
    ),
}


def cases(size: Size, folder: Path, workers: Workers) -> Iterator[Case]:
    """Cases of the size; the models are written below `folder`."""
    for training in SIZES[size]:
        config = published(training.model, tiny=training.tiny)
        directory = made_generator(workers, folder / f"{training.model}-{training.tiny}", config)
        examples = draw_examples(training, config.vocab_size)
        made = own_batches(training, examples)
        yield Case(
            training.name,
            Side("lamp", partial(lamp_updates, directory, made, examples, training)),
            [*_peers(directory, examples, training)],
            partial(close_values, relative=training.relative),
            flops=Products(config).training((len(one.source), len(one.target)) for one in examples),
            dtype=training.dtype,
            rounds=3 if training.batches == 1 else 2,
        )


def _peers(directory: str, examples: Sequence[Example], training: Training) -> Iterator[Side]:
    """transformers, with batches in random order as its Trainer has by default; and sorted by length."""
    orders = {"": np.random.default_rng(SEED).permutation(len(examples)).tolist()}
    if training.lengths != "fixed":
        orders |= {", by length": sorted(orders[""], key=lambda place: len(examples[place].source))}
    for name, order in orders.items():
        batches = [order[start : start + training.batch] for start in range(0, len(order), training.batch)]
        chosen = [[examples[place] for place in batches[number]] for number in _draw(len(batches), training.batches)]
        run = partial(transformers_updates, directory, chosen, examples, training)
        yield Side("transformers", run, f"transformers{name}", slow=training.batches > 2)


def _count(examples: Sequence[Example]) -> int:
    """Number of tokens."""
    return sum(len(one.source) + len(one.target) for one in examples)


def draw_examples(training: Training, vocabulary: int) -> list[Example]:
    rng = np.random.default_rng(SEED)
    source, uneven, target, uneven_target = LENGTHS[training.lengths]

    def draw(median: float, spread: float) -> list[int]:
        length = min(MAX_LENGTH, median * np.exp(spread * rng.standard_normal())) / training.shorter
        return draw_tokens(rng, max(3, round(length)), vocabulary)

    return [Example(str(n), draw(source, uneven), draw(target, uneven_target)) for n in range(training.examples)]


def own_batches(training: Training, examples: Sequence[Example]) -> list[Batch]:
    """Batches of an epoch of lamp, drawn at random where the epoch has more."""
    batches = TrainingBatches(examples, batch_size=training.batch, max_length=MAX_LENGTH, seed=SEED)
    return [batches[number] for number in _draw(len(batches), training.batches)]


def _draw(count: int, chosen: int) -> list[int]:
    return np.random.default_rng(SEED).permutation(count)[:chosen].tolist()


def lamp_updates(directory: str, batches: Sequence[Batch], examples: Sequence[Example], training: Training) -> Run:
    """Updates of `lamp train`; the result is the loss and the gradients' norms of the first examples, without
    dropout."""
    import jax
    from flax import nnx

    import lamp_jax as lamp
    from lamp_jax.config import Learning
    from lamp_jax.sharding import place_batch, use_mesh
    from lamp_jax.steps.generator import generator_loss
    from lamp_jax.steps.update import make_optimizer, make_update, start

    model = lamp.load(directory, dtype=training.dtype)
    graph, params = nnx.split(model.module)
    loss_sum, optimizer = generator_loss(graph), make_optimizer(Learning(), 1000)
    update = make_update(loss_sum, optimizer, seed=SEED, accumulation=1, rules=model.module.rules)
    with use_mesh(model.mesh):
        found = _lamp_gradient(model.module, examples[: training.batch])
        done = sum(int(np.count_nonzero(part >= 0)) for batch in batches for part in batch)
        state = start(params, optimizer)

    def run() -> Partial:
        nonlocal state
        with use_mesh(model.mesh):
            for batch in batches:
                state, _ = update(state, place_batch(batch))
            jax.block_until_ready(state)
        return Partial(done / _count(examples), found)

    return run


def _lamp_gradient(model: Any, examples: Sequence[Example]) -> dict[str, float]:
    """Loss of a batch and norms of its gradients by Hugging Face's names."""
    import jax
    from flax import nnx

    from lamp_jax.models.families import family_of
    from lamp_jax.models.weights import hf_tensors
    from lamp_jax.sharding import place_batch
    from lamp_jax.steps.generator import generator_loss

    graph, params = nnx.split(model)
    rows = ([one.source for one in examples], [one.target for one in examples])
    batch = tuple(pad_rows(side, len(side), max(map(len, side))) for side in rows)
    learn = jax.jit(jax.value_and_grad(generator_loss(graph), has_aux=True), static_argnums=2)
    (loss, count), gradient = learn(params, place_batch(batch), None)
    tensors = hf_tensors(nnx.merge(graph, gradient), family_of(model.config).places(model.config))
    norms = {name: float(np.linalg.norm(values.astype(np.float64))) for name, values in tensors.items()}
    return {"loss": float(loss / count)} | {name: norm / float(count) for name, norm in norms.items()}


def transformers_updates(
    directory: str, batches: Sequence[Sequence[Example]], examples: Sequence[Example], training: Training
) -> Run:
    """Updates of a plain loop with a fused AdamW; the result is as that of `lamp_updates`."""
    import torch

    from lamp_jax.bench.torch_side import finish, labelled, load_peer

    # Parameters in float32, products in `dtype`, as lamp has them.
    model = load_peer(directory, cuda=training.cuda)
    mixed = torch.autocast(model.device.type, torch.bfloat16, enabled=training.dtype == "bfloat16")

    def loss_of(batch: Sequence[Example]) -> Any:
        with mixed:
            return model(**labelled(batch, model.device, multiple=8)).loss

    loss = loss_of(examples[: training.batch])
    loss.backward()
    found = {"loss": loss.item()} | {name: one.grad.norm().item() for name, one in model.named_parameters()}
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=1e-4, fused=True)

    def run() -> Partial:
        for batch in batches:
            optimizer.zero_grad(set_to_none=True)
            loss_of(batch).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        finish(model)
        return Partial(sum(map(_count, batches)) / _count(examples), found)

    return run
