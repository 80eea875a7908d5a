"""Speedup of training and generating with many users' adapters at once, against peft with one user at a time.

`python benchmarks/adapters.py [--size small|demo] [--part train|generate|all]`: a T5 with random weights of T5-small's
size or the demo's; profiles as uneven and texts as long as LaMP-2's (for the demo shorter). The peer is peft on
`transformers` and torch, in the same process, on the same model directory. Its training is a plain loop with a fused
AdamW, not `transformers`' Trainer, which is slower; each user's adapter is initialized in place; batches have the same
rows and are padded to their longest row. The two sides alternate, the side with less of its work done first, because
the machine may be shared; CPU seconds, which other programs affect little, are printed beside wall-clock seconds.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # otherwise torch's idle threads occupy the cores

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import T5ForConditionalGeneration

from lamp_jax.decoding.answers import make_decoder
from lamp_jax.inputs.batches import Example, fit_buckets, pad_rows, prediction_batches
from lamp_jax.inputs.microbatches import Cohort, Microbatch, UserExamples
from lamp_jax.losses import IGNORED, sequence_log_probability
from lamp_jax.models.families import load_generator, save_generator
from lamp_jax.models.lora import Adapters, adapter_shapes, attach
from lamp_jax.models.peft import write_peft
from lamp_jax.models.t5 import T5
from lamp_jax.models.t5_config import FLAN_T5_SMALL, T5_SMALL, T5Config
from lamp_jax.options import Answering, Devices, Lora, Optimization, TrainAdapters
from lamp_jax.runs.workers import available_cores
from lamp_jax.sharding import model_options, open_mesh, place_batch
from lamp_jax.training.adapters import AdapterCohorts

DEMO = replace(FLAN_T5_SMALL, vocab_size=1024, d_model=64, d_ff=128, num_layers=2, num_decoder_layers=1, num_heads=2)
SIZES = {"small": T5_SMALL, "demo": replace(DEMO, d_kv=32)}
LORA = Lora(rank=8, dropout=0.1)
LEARNING = Optimization(epochs=1.0, batch_size=16)
QUESTIONS, TOGETHER, NEW = 64, 16, 8
AT_ONCE = 4  # microbatches that lamp computes before the peer's turn
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--part", choices=["train", "generate", "all"], default="all")
    parser.add_argument("--users", type=int, default=64, help="number of users, trained at once")
    parser.add_argument(
        "--others", type=int, default=0, help="number of these users, drawn at random, that the peer trains; 0: all"
    )
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--tokens", type=int, default=4096, help="`--tokens-per-device` of lamp")
    parser.add_argument("--cpu-devices", type=int, default=1, help="`--cpu-devices` of lamp")
    options = parser.parse_args()
    torch.set_num_threads(available_cores())
    torch.manual_seed(SEED)
    devices = Devices(cpu_devices=options.cpu_devices)
    with tempfile.TemporaryDirectory() as name, jax.set_mesh(open_mesh(devices)):
        # No token ends an answer, so that all have the same length.
        config = replace(SIZES[options.size], eos_token_id=-1)
        save_generator(T5(config, rngs=nnx.Rngs(SEED)), name)
        model = cast(T5, load_generator(name, **model_options(devices)))
        users = make_users(options.users, config.vocab_size, short=options.size == "demo")
        compare_losses(model, Path(name), users[0])
        if options.part != "generate":
            learning = replace(LEARNING, epochs=options.epochs)
            run = TrainAdapters(
                "", "", "", lora=LORA, learning=learning, users_per_step=options.users, tokens_per_device=options.tokens
            )
            measure_training(run, model, name, users, options.others or options.users)
        if options.part != "train":
            measure_generation(model, Path(name), short=options.size == "demo")


def draw_source(rng: np.random.Generator, vocabulary: int, *, short: bool) -> list[int]:
    length = int(rng.integers(40, 71)) if short else int(min(430, 130 + rng.gamma(3, 30)))
    return rng.integers(3, vocabulary, length).tolist()


def make_users(count: int, vocabulary: int, *, short: bool) -> list[UserExamples]:
    """Users with 4 to 149 items, half of them at most 23, and answers of 2 to 4 tokens and `</s>`."""
    rng = np.random.default_rng(SEED)
    sizes = np.clip(np.exp(rng.normal(np.log(23), 0.8, count)), 4, 149).astype(int)

    def item() -> Example:
        target = rng.integers(3, vocabulary, rng.integers(2, 5)).tolist()
        return Example("", draw_source(rng, vocabulary, short=short), [*target, 1])

    return [UserExamples(str(user), [item() for _ in range(size)]) for user, size in enumerate(sizes)]


def draw_adapters(model: T5, count: int) -> dict[str, np.ndarray]:
    """Adapters [count, ...] that change the output: `.up` is not 0 either."""
    rng, shapes = np.random.default_rng(SEED), adapter_shapes(model, LORA)
    return {name: rng.normal(0, 0.05, (count, *shape)).astype(np.float32) for name, shape in shapes.items()}


def open_peft(directory: Path, config: T5Config, adapters: Mapping[str, np.ndarray]) -> Any:
    """peft's base model with all of these adapters [U, ...], named by their numbers; in evaluation mode."""
    model: Any = T5ForConditionalGeneration.from_pretrained(directory)
    for user in range(len(next(iter(adapters.values())))):
        place, name = directory / f"adapter-{user}", str(user)
        write_peft(place, {key: values[user] for key, values in adapters.items()}, config, LORA, base=str(directory))
        if user:
            model.load_adapter(str(place), adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, str(place), adapter_name=name)
    return model.eval()


def to_torch(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Batch for `transformers`, padded to its longest row."""
    sources, targets = ([getattr(one, side) for one in examples] for side in ("source", "target"))
    source = pad_rows(sources, len(examples), max(map(len, sources)), pad=0)
    target = pad_rows(targets, len(examples), max(map(len, targets)), pad=0)
    found = {
        "input_ids": source,
        "attention_mask": source != 0,
        "labels": np.where(target == 0, IGNORED, target),
    }
    return {name: torch.tensor(values.astype(np.int64)) for name, values in found.items()}


def compare_losses(model: T5, directory: Path, user: UserExamples) -> None:
    """Checks that the losses of a user's first batch agree, without dropout and with the same adapter on both sides."""
    examples, adapters = user.examples[: LEARNING.batch_size], draw_adapters(model, 1)
    batch = to_torch(examples)
    graph, params = nnx.split(model)

    @jax.jit
    def loss(params: Any, rows: Adapters, source: jax.Array, target: jax.Array) -> jax.Array:
        model = attach(nnx.merge(graph, params), rows, LORA)
        logits = model.target_logits(source, target)
        return -jnp.sum(sequence_log_probability(logits, target, pad=0)) / jnp.sum(target != 0)

    target = np.maximum(batch["labels"].numpy(), 0)
    # Twice, so that the rows divide over two devices.
    rows = {name: np.repeat(values, 2 * len(examples), axis=0) for name, values in adapters.items()}
    inputs = [np.tile(values, (2, 1)).astype(np.int32) for values in (batch["input_ids"].numpy(), target)]
    ours = float(loss(params, *place_batch((rows, *inputs))))
    with torch.no_grad():
        theirs = open_peft(directory, model.config, adapters)(**batch).loss.item()
    assert abs(ours - theirs) < 1e-4 * theirs, (ours, theirs)
    print(f"loss of a user's first batch: lamp {ours:.6f}, peft {theirs:.6f}")


class Clock:
    """Wall-clock seconds, and CPU seconds of all threads of this process, within `with clock:`."""

    def __init__(self) -> None:
        self.seconds = self.processor = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._start[0]
        self.processor += time.process_time() - self._start[1]


def take_turns(sides: Sequence[tuple[Iterator[int], int]], clocks: Sequence[Clock]) -> None:
    """Alternates between sides, given as an iterator of the amounts of work done and the total amount.

    The next step is always of the side with the smallest share of its work done.
    """
    shares, left = [0.0] * len(sides), list(range(len(sides)))
    while left:
        side = min(left, key=lambda one: shares[one])
        work, total = sides[side]
        with clocks[side]:
            done = next(work, None)
        if done is None:
            left.remove(side)
        else:
            shares[side] += done / total


def one_of_each(cohort: Cohort) -> list[Microbatch]:
    """First microbatch of every shape."""
    found: dict[Any, Microbatch] = {}
    for microbatch in cohort.microbatches():
        found.setdefault(microbatch.shape, microbatch)
    return list(found.values())


def measure_training(run: TrainAdapters, model: T5, directory: str, users: Sequence[UserExamples], others: int) -> None:
    """Prints the speed of training, of lamp for all users and of peft for `others` of them."""
    cohorts = AdapterCohorts(run, model, users)
    (cohort,) = cohorts.all
    theirs = OneByOne(run, directory, cohort)
    chosen = np.random.default_rng(SEED).permutation(len(users))[:others]
    some = [users[place] for place in sorted(chosen)]
    compiling, *clocks = Clock(), Clock(), Clock()
    with compiling:
        state = cohorts.start(cohort)
        for microbatch in one_of_each(cohort):
            state = jax.block_until_ready(cohorts.compute(state, cohort, microbatch, (0, 0, 0)))
    shapes = cohorts.computed
    cohorts.computed = cohorts.real = 0
    theirs.train(some[0].examples[: LEARNING.batch_size])

    def together() -> Iterator[int]:
        state, done = cohorts.start(cohort), 0
        for place, microbatch in enumerate(cohort.microbatches()):
            state = cohorts.compute(state, cohort, microbatch, (0, 0, place))
            if not place % AT_ONCE or not microbatch.left:
                jax.block_until_ready(state)
                yield int(cohorts.real) - done
                done = int(cohorts.real)
        assert np.isfinite(cohorts.finish(state, cohort).losses).all()

    def one_by_one() -> Iterator[int]:
        for user in some:
            yield from theirs.adapt(user)

    total, sample = (sum(count_tokens(cohort, user) for user in chosen) for chosen in (users, some))
    take_turns([(together(), total), (one_by_one(), sample)], clocks)
    assert (cohorts.real, theirs.real) == (total, sample)
    ours, other = clocks
    scale = total / sample
    subset = (
        "" if others >= len(users) else f" ({others} users drawn, {sample:,} tokens, the others extrapolated by tokens)"
    )
    items = sum(len(user.examples) for user in users)
    microbatches = sum(1 for _ in cohort.microbatches())
    print(f"{len(users)} users, {items} items, {total:,} tokens in {microbatches} microbatches; peft: all{subset}")
    for name, clock, times, padding in (
        ("lamp, compilation excluded", ours, 1.0, cohorts.padding),
        ("peft", other, scale, 1 - theirs.real / theirs.computed),
    ):
        seconds = clock.seconds * times
        print(
            f"{name}: {seconds:.1f} s ({clock.processor * times:.1f} CPU seconds), {total / seconds:,.0f} tokens "
            f"per second, {3600 * len(users) / seconds:,.0f} users per hour, {padding:.1%} padding"
        )
    peft_seconds = other.seconds * scale
    print(
        f"speedup {peft_seconds / ours.seconds:.2f} ({other.processor * scale / ours.processor:.2f} by CPU seconds); "
        f"{peft_seconds / (ours.seconds + compiling.seconds):.2f} with the {compiling.seconds:.1f} s of compiling and "
        f"running every shape once ({shapes:,} tokens)"
    )
    work = sum(count_operations(model.config, one) * run.learning.epochs for user in users for one in user.examples)
    best, torchs = matrix_products()
    print(
        f"GFLOP/s of real tokens: lamp {work / ours.seconds / 1e9:.1f}, peft {work / peft_seconds / 1e9:.1f}; "
        f"peak matmul throughput (2048 x 2048): jax {best / 1e9:.1f}, torch {torchs / 1e9:.1f} GFLOP/s"
    )


class OneByOne:
    """Base model in peft, whose adapter is trained for one user after the other."""

    def __init__(self, run: TrainAdapters, directory: str, cohort: Cohort):
        base: Any = T5ForConditionalGeneration.from_pretrained(directory)
        form = LoraConfig(
            task_type=TaskType.SEQ_2_SEQ_LM,
            r=run.lora.rank,
            lora_alpha=run.lora.alpha,  # pyright: ignore[reportArgumentType] (any number will do)
            target_modules=list(run.lora.targets),
            lora_dropout=run.lora.dropout,
        )
        self.model: Any = get_peft_model(base, form).train()
        self.parameters = [one for one in self.model.parameters() if one.requires_grad]
        self.layers = [one for one in self.model.modules() if isinstance(one, LoraLayer)]
        self.learning, self.cohort = run.learning, cohort
        self.adapters: dict[str, list[torch.Tensor]] = {}
        self.computed = self.real = 0

    def adapt(self, user: UserExamples) -> Iterator[int]:
        """Trains a user's adapter; yields the number of tokens of each update."""
        for layer in self.layers:
            layer.reset_lora_parameters("default", True)
        rate, decay = self.learning.learning_rate, self.learning.weight_decay
        optimizer = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=decay, fused=True)
        total, warmup = user.updates(self.learning), user.warmup(self.learning)
        for turn in range(total):
            fall = (total - turn) / max(total - warmup, 1)
            optimizer.param_groups[0]["lr"] = rate * (turn / warmup if turn < warmup else fall)
            examples = examples_of(self.cohort, user, turn)
            rows = self.train(examples)
            torch.nn.utils.clip_grad_norm_(self.parameters, self.learning.clip)
            optimizer.step()
            self.computed += rows["input_ids"].numel() + rows["labels"].numel()
            tokens = sum(len(one.source) + len(one.target) for one in examples)
            self.real += tokens
            yield tokens
        self.adapters[user.user] = [one.detach().clone() for one in self.parameters]

    def train(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Computes the gradient of a batch; returns the batch."""
        rows = to_torch(examples)
        for parameter in self.parameters:
            parameter.grad = None
        self.model(**rows, use_cache=False).loss.backward()
        return rows


def examples_of(cohort: Cohort, user: UserExamples, turn: int) -> list[Example]:
    """Examples of a user's update."""
    return [row.example for row in cohort.rows(cohort.users.index(user), turn)]


def count_tokens(cohort: Cohort, user: UserExamples) -> int:
    """Number of tokens in a user's entire training."""
    rows = (one for turn in range(user.updates(cohort.learning)) for one in examples_of(cohort, user, turn))
    return sum(len(one.source) + len(one.target) for one in rows)


def count_operations(config: T5Config, example: Example) -> float:
    """FLOPs of an example's forward and backward pass.

    Without gradients of weights, which are frozen, and without low-rank products (some percent).
    """
    source, target = len(example.source), len(example.target)
    heads = config.num_heads * config.d_kv
    one = config.d_model * heads
    wide = config.d_model * config.d_ff * (3 if config.feed_forward_proj == "gated-gelu" else 2)
    encoder = config.num_layers * (source * (4 * one + wide) + 2 * source * source * heads)
    decoder = config.num_decoder_layers * (2 * source * one + target * (6 * one + wide) + 2 * target * source * heads)
    head = target * config.d_model * config.vocab_size
    # The forward pass and the gradient by a product's input; attention has two inputs with gradients per product.
    scores = config.num_layers * 2 * source * source * heads
    return 2 * (2 * (encoder + decoder + head) + scores)


def matrix_products() -> tuple[float, float]:
    """Peak matmul throughput (2048 x 2048) of jax and of torch, FLOP/s."""
    size = 2048
    values = np.random.default_rng(SEED).standard_normal((size, size), np.float32)
    ours, theirs = jnp.asarray(values), torch.tensor(values)
    product = jax.jit(lambda a: a @ a)

    def best(run: Callable[[], Any]) -> float:
        run()
        times = []
        for _ in range(10):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return 2 * size**3 / min(times)

    return best(lambda: product(ours).block_until_ready()), best(lambda: theirs @ theirs)


def measure_generation(model: T5, directory: Path, *, short: bool) -> None:
    """Prints the speed of generation, where every question is of another user."""
    config, rng = model.config, np.random.default_rng(SEED)
    sources = [draw_source(rng, config.vocab_size, short=short) for _ in range(QUESTIONS)]
    adapters = draw_adapters(model, QUESTIONS)
    theirs = open_peft(directory, config, adapters)
    theirs.generation_config.eos_token_id = None
    graph, params = nnx.split(model)
    decode = make_decoder(graph, Answering("greedy", generation_max_length=NEW + 1), None, lora=LORA)
    # Questions of similar length are in one batch, for the peer too.
    ordered = sorted(range(QUESTIONS), key=lambda place: len(sources[place]))
    several = [ordered[start : start + TOGETHER] for start in range(0, QUESTIONS, TOGETHER)]
    lengths = fit_buckets(map(len, sources), 512)
    examples = [Example(str(place), source) for place, source in enumerate(sources)]
    together, alone = (
        [(places, batch.source) for places, batch in prediction_batches(examples, rows=dict.fromkeys(lengths, rows))]
        for rows in (TOGETHER, 1)
    )
    answers = {name: np.zeros((QUESTIONS, NEW), np.int64) for name in ("ours", "alone", "peft", "mixed")}

    def ours(name: str, batches: Iterable[tuple[list[int], np.ndarray]]) -> Iterator[int]:
        for places, source in batches:
            # A single question is copied to all devices.
            copies = -(-jax.device_count() // len(places))
            own = {key: np.repeat(values[places], copies, axis=0) for key, values in adapters.items()}
            found = decode(params, *place_batch((np.repeat(source, copies, axis=0), own)))
            answers[name][places] = np.asarray(found)[::copies]
            yield len(places)

    def generate(places: Sequence[int], **more: Any) -> np.ndarray:
        longest = max(len(sources[place]) for place in places)
        source = torch.tensor(
            pad_rows([sources[place] for place in places], len(places), longest, pad=0).astype(np.int64)
        )
        with torch.no_grad():
            found = theirs.generate(
                input_ids=source, attention_mask=source != 0, max_new_tokens=NEW, do_sample=False, num_beams=1, **more
            )
        assert found.shape[1] == NEW + 1
        return found[:, 1:].numpy()

    def peft() -> Iterator[int]:
        for place in range(QUESTIONS):
            theirs.set_adapter(str(place))
            answers["peft"][place] = generate([place])
            yield 1

    def mixed() -> Iterator[int]:
        for places in several:
            answers["mixed"][places] = generate(places, adapter_names=[str(place) for place in places])
            yield len(places)

    compiling, *clocks = (Clock() for _ in range(5))
    with compiling:
        for name, batches in (("ours", together), ("alone", alone)):
            for _ in ours(name, {source.shape: (places, source) for places, source in batches}.values()):
                pass
    sides = [ours("ours", together), ours("alone", alone), peft(), mixed()]
    for side in (peft(), mixed()):
        next(side)
    take_turns([(side, QUESTIONS) for side in sides], clocks)
    names = [
        f"lamp, mixed batches of {TOGETHER}",
        "lamp, one at a time",
        "peft, one at a time, adapters switched",
        f"peft, mixed batches of {TOGETHER}",
    ]
    print(f"{QUESTIONS} questions of as many users, {NEW} tokens each; compilation took {compiling.seconds:.1f} s")
    for name, clock, found in zip(names, clocks, answers.values(), strict=True):
        same = (found == answers["peft"]).all(axis=1).mean()
        print(
            f"{name}: {3600 * QUESTIONS / clock.seconds:,.0f} questions per hour ({clock.processor:.1f} CPU seconds); "
            f"speedup of lamp's mixed batches {clock.seconds / clocks[0].seconds:.2f} "
            f"({clock.processor / clocks[0].processor:.2f} by CPU seconds); {same:.0%} of answers equal peft's"
        )


if __name__ == "__main__":
    main()
