"""Adapters of many users against peft: training all at once, and answering questions of different users together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lamp_jax.bench.cases import Case, Dtype, Partial, Run, Side, Size, close_values, same_rows
from lamp_jax.bench.flops import Products
from lamp_jax.bench.models import SEED, draw_tokens, make_generator, published, tokens_of
from lamp_jax.bench.workers import Workers
from lamp_jax.config import Lora, Optimization
from lamp_jax.inputs.batches import Example
from lamp_jax.inputs.microbatches import UserExamples

LORA = Lora(rank=8, dropout=0.1)
LEARNING = Optimization(epochs=1.0, batch_size=16)
TASK = "LaMP-2"


@dataclass(frozen=True)
class Users:
    """Users with as many items as LaMP-2's, who are trained together, and who each ask a question."""

    name: str
    users: int
    others: int
    """Number of users whom peft trains; the time of all is extrapolated by tokens."""
    every: int
    """lamp computes each of its microbatches whose number this divides."""
    model: str = "t5-small"
    tiny: bool = False
    batch: int = 16
    """Questions per batch."""
    new: int = 8
    tokens: int = 4096
    """Tokens per microbatch."""
    shorter: int = 1
    """Divisor of prompts' lengths and of the numbers of items."""
    even: bool = False
    """Whether all prompts and answers have one length: one shape, which compiles faster."""
    dtype: Dtype = "float32"
    cuda: bool = False


SIZES: dict[Size, tuple[Users, ...]] = {
    "smoke": (Users("tiny", 4, 2, 1, tiny=True, batch=4, tokens=256, shorter=8, even=True),),
    "full": (Users("T5-small", 64, 3, 16),),
    "gpu": (
        Users("FLAN-T5-base", 64, 2, 4, "flan-t5-base", tokens=16384, dtype="bfloat16", cuda=True),
        Users("FLAN-T5-large", 64, 1, 8, "flan-t5-large", tokens=16384, dtype="bfloat16", cuda=True),
    ),
}


def cases(size: Size, folder: Path, workers: Workers) -> Iterator[Case]:
    """Cases of the size; models and adapters are written below `folder`."""
    for form in SIZES[size]:
        config = published(form.model, tiny=form.tiny)
        place = folder / form.model
        workers.of("lamp").call(make_files, place, config, form)
        users = draw_users(form, config.vocab_size)
        lengths = [(len(one.source), len(one.target)) for user in users for one in user.examples]
        products = Products(config)
        exact = form.dtype == "float32"
        yield Case(
            f"{form.name}, training {form.users} users, {len(lengths)} items",
            Side("lamp", partial(lamp_training, place, users, form)),
            [
                Side(
                    "peft",
                    partial(peft_training, place, users, form),
                    "peft, one user at a time",
                    slow=True,
                    exact=exact,
                )
            ],
            partial(close_values, relative=1e-4),
            flops=products.frozen(lengths),
            dtype=form.dtype,
            complete=True,
            rounds=2,
        )
        prompts = [user.examples[0].source for user in users]
        answer = partial(peft_answers, place, prompts, form)
        yield Case(
            f"{form.name}, {form.users} questions, an adapter each, {form.new} new",
            Side("lamp", partial(lamp_answers, place, prompts, form)),
            [
                Side("peft", partial(answer, mixed=True), "peft, mixed batches", exact=exact),
                Side("peft", partial(answer, mixed=False), "peft, switching adapters", slow=True, exact=exact),
            ],
            partial(same_rows, least=1.0 if form.tiny else 0.9),
            flops=sum(products.beam(len(one), form.new, 1) for one in prompts),
            dtype=form.dtype,
        )


def draw_users(form: Users, vocabulary: int) -> list[UserExamples]:
    """Users with 4 to 149 items, half of them at most 23, and answers of 2 to 4 tokens and `</s>`."""
    rng = np.random.default_rng(SEED)
    sizes = np.clip(np.exp(rng.normal(np.log(23), 0.8, form.users)), 4, 149).astype(int) // form.shorter + 1

    def item() -> Example:
        length = (130 if form.even else int(min(430, 130 + rng.gamma(3, 30)))) // form.shorter
        return Example(
            "",
            draw_tokens(rng, length, vocabulary),
            draw_tokens(rng, 4 if form.even else int(rng.integers(3, 6)), vocabulary),
        )

    return [UserExamples(str(user), [item() for _ in range(size)]) for user, size in enumerate(sizes)]


def make_files(place: Path, config: Any, form: Users) -> None:
    """Writes the model, a store of an adapter for each user, and the same adapters for peft."""
    from lamp_jax.artifacts.adapters import AdapterEntry, create_store
    from lamp_jax.models.peft import write_peft
    from lamp_jax.training.store import make_form

    model = str(place / "model")
    make_generator(model, config)
    rng, store_form = np.random.default_rng(SEED), make_form(model, LORA, "float32")
    # They change the output: `.up` is not 0 either.
    adapters = {
        name: rng.normal(0, 0.05, (form.users, *shape)).astype(np.float32) for name, shape in store_form.shapes.items()
    }
    users = [str(number) for number in range(form.users)]
    create_store(place / "store", store_form).append([AdapterEntry(user, 1, 1, 0.0) for user in users], adapters)
    for number, user in enumerate(users):
        own = {name: values[number] for name, values in adapters.items()}
        write_peft(place / "peft" / user, own, config, LORA, base=model)


# --- training


def lamp_training(place: Path, users: Sequence[UserExamples], form: Users) -> Run:
    """Updates of `lamp train-adapters`; the result is the loss of a user's first examples, with a given adapter."""
    import jax

    import lamp_jax as lamp
    from lamp_jax.settings import AdapterTraining
    from lamp_jax.sharding import use_mesh
    from lamp_jax.training.adapters import AdapterCohorts

    model = lamp.load(place / "model", dtype=form.dtype)
    settings = AdapterTraining(
        lora=LORA, learning=LEARNING, users_per_step=form.users, tokens_per_device=form.tokens, seed=SEED
    )
    with use_mesh(model.mesh):
        found = {"loss": _lamp_loss(place, model.module, users[0].examples[: LEARNING.batch_size])}
        cohorts = AdapterCohorts(settings, model.module, users)
    (cohort,) = cohorts.all
    microbatches = list(cohort.microbatches())
    chosen = microbatches[:: form.every]
    share = sum(map(_tokens, chosen)) / sum(map(_tokens, microbatches))
    kinds = {one.shape: one for one in microbatches}
    compiled = False

    def run() -> Partial:
        nonlocal compiled
        with use_mesh(model.mesh):
            state = cohorts.start(cohort)
            for number, microbatch in enumerate(chosen if compiled else [*kinds.values(), *chosen]):
                state = cohorts.compute(state, cohort, microbatch, (0, 0, number))
            jax.block_until_ready(state)
        compiled = True
        return Partial(share, found)

    return run


def _tokens(microbatch: Any) -> int:
    return sum(row.tokens for rows in microbatch.rows for row in rows)


def _lamp_loss(place: Path, model: Any, examples: Sequence[Example]) -> float:
    """Mean cross-entropy of the examples' answers with the first user's adapter, without dropout."""
    import jax
    from flax import nnx

    from lamp_jax.artifacts.adapters import open_store
    from lamp_jax.inputs.batches import pad_rows
    from lamp_jax.losses import token_cross_entropy
    from lamp_jax.models.lora import attach
    from lamp_jax.sharding import place_batch

    graph, params = nnx.split(model)

    @jax.jit
    def loss(params: Any, rows: Mapping[str, jax.Array], source: jax.Array, target: jax.Array) -> jax.Array:
        logits = attach(nnx.merge(graph, params), rows, LORA).target_logits(source, target)
        total, count = token_cross_entropy(logits, target, pad=model.config.pad_token_id)
        return total / count

    sides = ([one.source for one in examples], [one.target for one in examples])
    source, target = (pad_rows(rows, len(rows), max(map(len, rows))) for rows in sides)
    adapters = open_store(place / "store").read(["0"] * len(examples))
    return float(loss(params, *place_batch((adapters, source, target))))


def peft_training(place: Path, users: Sequence[UserExamples], form: Users) -> Run:
    """A plain loop with a fused AdamW, one user after the other; batches are padded to their longest row."""
    import torch
    from peft import LoraConfig, TaskType, get_peft_model

    from lamp_jax.bench.torch_side import finish, labelled, load_peer

    base = load_peer(str(place / "model"), cuda=form.cuda)
    mixed = torch.autocast(base.device.type, torch.bfloat16, enabled=form.dtype == "bfloat16")

    def loss_of(model: Any, examples: Sequence[Example]) -> Any:
        with mixed:
            return model(**labelled(examples, model.device)).loss

    with torch.no_grad():
        given = open_peft(place, ["0"], cuda=form.cuda)
        found = {"loss": loss_of(given, users[0].examples[: LEARNING.batch_size]).item()}
    settings = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=LORA.rank,
        lora_alpha=int(LORA.alpha),
        target_modules=list(LORA.targets),
        lora_dropout=LORA.dropout,
    )
    model: Any = get_peft_model(base, settings).train()
    chosen = np.random.default_rng(SEED).permutation(len(users))[: form.others].tolist()
    counted = [sum(len(one.source) + len(one.target) for one in user.examples) for user in users]

    def run() -> Partial:
        for number in chosen:
            _train_alone(model, users[number].examples, loss_of)
        finish(model)
        return Partial(sum(counted[number] for number in chosen) / sum(counted), found)

    return run


def _train_alone(model: Any, examples: Sequence[Example], loss_of: Callable[[Any, Sequence[Example]], Any]) -> None:
    """One epoch of a new adapter, initialized in place."""
    import torch
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.reset_lora_parameters("default", True)
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING.learning_rate, weight_decay=LEARNING.weight_decay, fused=True)
    for start in range(0, len(examples), LEARNING.batch_size):
        optimizer.zero_grad(set_to_none=True)
        loss_of(model, examples[start : start + LEARNING.batch_size]).backward()
        torch.nn.utils.clip_grad_norm_(parameters, LEARNING.clip)
        optimizer.step()


# --- generation


def lamp_answers(place: Path, prompts: Sequence[Sequence[int]], form: Users) -> Run:
    """Greedy answers of `lamp.generate`, in batches of questions of any users."""
    import lamp_jax as lamp
    from lamp_jax.artifacts.adapters import open_store
    from lamp_jax.results import QuestionPrompt

    model, store = lamp.load(place / "model", dtype=form.dtype), open_store(place / "store")
    rows = [QuestionPrompt(str(n), str(n), TASK, "", tuple(one), 0, False) for n, one in enumerate(prompts)]
    options: dict[str, Any] = {"decode": "greedy", "generation_max_length": form.new + 1, "batch_size": form.batch}
    return lambda: [tokens_of(one.text) for one in lamp.generate(model, rows, adapters=store, **options)]


def peft_answers(place: Path, prompts: Sequence[Sequence[int]], form: Users, *, mixed: bool) -> Run:
    """Greedy answers of peft: batches of similar lengths with `adapter_names`, or one question after the other."""
    from lamp_jax.bench.torch_side import answer_tokens, padded

    names = [str(number) for number in range(len(prompts))]
    model = open_peft(place, names, cuda=form.cuda, dtype=form.dtype)
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    size = form.batch if mixed else 1

    def run() -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), size):
            numbers = order[start : start + size]
            if not mixed:
                model.set_adapter(names[numbers[0]])
            own: dict[str, Any] = {"adapter_names": [names[number] for number in numbers]} if mixed else {}
            source = padded([prompts[number] for number in numbers], model.device)
            found = model.generate(
                input_ids=source, attention_mask=source != 0, max_new_tokens=form.new, do_sample=False, **own
            )
            for number, row in zip(numbers, answer_tokens(found), strict=True):
                answers[number] = row
        return answers

    return run


def open_peft(place: Path, names: Sequence[str], *, cuda: bool, dtype: Dtype = "float32") -> Any:
    """peft's base model with these adapters, in evaluation mode."""
    from peft import PeftModel

    from lamp_jax.bench.torch_side import load_peer

    base = load_peer(str(place / "model"), dtype=dtype, cuda=cuda)
    model: Any = PeftModel.from_pretrained(base, str(place / "peft" / names[0]), adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(str(place / "peft" / name), adapter_name=name)
    return model.eval()
