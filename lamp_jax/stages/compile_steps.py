"""Steps of the stages that run on devices, with abstract arrays, for compilation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lamp_jax.config import SCRATCH, Answering, Learning, Storage
from lamp_jax.decoding.answers import make_decoder
from lamp_jax.decoding.generation import DEFAULT_GENERATION, read_generation
from lamp_jax.decoding.labels import mean_log_probability
from lamp_jax.errors import LampError
from lamp_jax.inputs.candidate_batches import CandidateBatch
from lamp_jax.inputs.microbatches import fit_rows
from lamp_jax.models.bert import Bert, BertConfig
from lamp_jax.models.families import abstract_generator, published_configs, read_generator_config
from lamp_jax.models.generator import GeneratorConfig
from lamp_jax.models.longformer import Longformer, LongformerConfig
from lamp_jax.models.lora import adapter_shapes, adapter_specs
from lamp_jax.models.weights import CONFIG, read_config
from lamp_jax.options.adapters import TrainAdapters
from lamp_jax.options.feedback import FeedbackItems, FeedbackRetrievers
from lamp_jax.options.generator import Generate, Train
from lamp_jax.options.retriever import TrainRetriever
from lamp_jax.options.selector import TrainSelector
from lamp_jax.retrieval.encoders import LONGEST, FoundEncoder, choose_settings, find_encoder
from lamp_jax.sharding import Rules, check_divides, model_options, shards
from lamp_jax.steps.adapters import MicrobatchArrays, Users, make_adapter_update, start_users
from lamp_jax.steps.generator import generator_loss
from lamp_jax.steps.retriever import choose_objective, retriever_loss
from lamp_jax.steps.selector import selector_loss
from lamp_jax.steps.update import LossSum, make_optimizer, make_update, start
from lamp_jax.tasks.catalog import find_task

GeneratorExperiment = Train | Generate | FeedbackItems | FeedbackRetrievers

_UPDATES = 1000  # of a run; only the values of its schedule depend on it
_LABEL_TOKENS = 4


class Step(NamedTuple):
    """Step that can be lowered, and the forward pass from which its useful products are counted."""

    lower: Callable[[], Any]
    forward: tuple[Callable[..., Any], tuple[Any, ...]] | None
    """Forward pass of an update, and its arguments; None for steps without a gradient."""
    passes: int = 3
    """Ratio of an update's products to the forward pass's: 1, and 1 each for the gradients of inputs and weights."""


def train_step(experiment: Train, candidates: int) -> Step:
    """Update of a generator at the maximum lengths of prompts and answers."""
    graph, params, rules = _generator(experiment)
    rows, length = experiment.learning.batch_size, experiment.prompting.max_length
    target = _up_to_multiple(experiment.answering.generation_max_length - 1, 8)
    batch = (_rows((rows, length), rules), _rows((rows, target), rules))
    return _update(generator_loss(graph), params, batch, experiment.learning, rules)


def generate_step(experiment: GeneratorExperiment, candidates: int) -> Step:
    """Decoding of a batch of answers to their maximum length; labels are assumed to have four tokens each."""
    graph, params, rules = _generator(experiment)
    answering: Answering = experiment.answering
    labels = None
    if answering.decode == "labels":
        labels = np.ones((len(find_task(experiment.task).labels), _LABEL_TOKENS), np.int32)
    source = _rows((_batch_size(experiment), _max_length(experiment)), rules)
    generation = read_generation(experiment.model, answering) if Path(experiment.model).is_dir() else DEFAULT_GENERATION
    decode = make_decoder(graph, answering, labels, generation=generation)
    return Step(lambda: decode.lower(params, source), None)


def feedback_step(experiment: GeneratorExperiment, candidates: int) -> Step:
    """Feedback of a batch: answers, or the references' log-probabilities with the reward "likelihood"."""
    if not isinstance(experiment, FeedbackItems) or experiment.reward != "likelihood":
        return generate_step(experiment, candidates)
    graph, params, rules = _generator(experiment)
    rows, target = experiment.batch_size, _up_to_multiple(experiment.answering.generation_max_length - 1, 16)
    measure = jax.jit(lambda params, *batch: mean_log_probability(nnx.merge(graph, params), *batch))
    batch = (_rows((rows, experiment.max_length), rules), _rows((rows, target), rules))
    return Step(lambda: measure.lower(params, *batch), None)


def retriever_step(experiment: TrainRetriever, candidates: int) -> Step:
    """Update of a retriever at the maximum lengths of texts and the maximum number of items."""
    config = _encoder_config(experiment.encoder, BertConfig)
    graph, params, rules = _abstract_model(
        lambda model_kwargs: Bert(config, rngs=nnx.Rngs(0), **model_kwargs), experiment
    )
    found, length = FoundEncoder(experiment.encoder, {}), experiment.max_length
    if Path(experiment.encoder).is_dir():
        found = find_encoder(experiment.encoder, Path(experiment.encoder))
    settings = choose_settings(found, experiment.encoding, max_length=length, longest=LONGEST, positions=config.longest)
    batch = _candidate_batch(experiment.learning, 1, experiment.profile_size, settings.longest, rules)
    loss = retriever_loss(graph, choose_objective(experiment, compatibility=experiment.compatibility), settings)
    return _update(loss, params, batch, experiment.learning, rules)


def selector_step(experiment: TrainSelector, candidates: int) -> Step:
    """Update of a selector at the maximum length of texts."""
    first_token = experiment.compatibility.selector_first_token
    graph, params, rules = _abstract_model(
        lambda model_kwargs: Longformer(
            _encoder_config(experiment.model, LongformerConfig),
            rngs=nnx.Rngs(0),
            first_token=first_token,
            **model_kwargs,
        ),
        experiment,
    )
    batch = _candidate_batch(experiment.learning, 0, candidates, experiment.max_length or 1024, rules)
    loss = selector_loss(graph, temperature=experiment.temperature, compatibility=experiment.compatibility)
    return _update(loss, params, batch, experiment.learning, rules)


def adapters_step(experiment: TrainAdapters, candidates: int) -> Step:
    """Microbatch of an update of many users' adapters, at the maximum lengths of inputs and answers."""
    graph, params, rules = _generator(experiment)
    model, lora, learning, users = (
        nnx.merge(graph, params),
        experiment.lora,
        experiment.learning,
        experiment.users_per_step,
    )
    check_divides("--users-per-step", users, rules.batch)
    specs, shapes = adapter_specs(model, lora), adapter_shapes(model, lora)
    adapters = {name: _array((users, *shape), specs[name], jnp.float32) for name, shape in shapes.items()}
    state = _placed(jax.eval_shape(lambda adapters: start_users(adapters, learning, rules), adapters))
    most = users // shards(rules.batch) * learning.batch_size
    shape = fit_rows(experiment.max_length, experiment.target_length, experiment.tokens_per_device, most)
    rows = shape.rows * shards(rules.batch)
    microbatch = MicrobatchArrays(
        _rows((rows, shape.source), rules),
        _rows((rows, shape.target), rules),
        _rows((rows,), rules),
        _rows((rows,), rules, jnp.float32),
    )
    of_users = Users(*(_rows((users,), rules, dtype) for dtype in (jnp.int32, jnp.int32, jnp.bool_, jnp.float32)))
    where, last = _array((3,), P(), jnp.int32), _array((), P(), jnp.bool_)
    update = make_adapter_update(graph, learning, lora, seed=0, shared=False, rules=rules)

    def forward(params: Any, batch: Any) -> Any:
        return generator_loss(graph)(params, batch, jax.random.key(0, impl="rbg"))

    def lower() -> Any:
        return update.lower(state, params, microbatch, of_users, where, last)

    return Step(lower, (forward, (params, microbatch[:2])), passes=2)  # frozen weights have no gradients


STEPS: dict[str, tuple[Callable[..., Step], tuple[type, ...]]] = {
    "train": (train_step, (Train,)),
    "generate": (generate_step, (Generate, Train, FeedbackItems, FeedbackRetrievers)),
    "feedback": (feedback_step, (FeedbackItems, FeedbackRetrievers, Generate, Train)),
    "retriever": (retriever_step, (TrainRetriever,)),
    "selector": (selector_step, (TrainSelector,)),
    "adapters": (adapters_step, (TrainAdapters,)),
}
"""Builder of each stage's step, and the options classes it accepts, those of the stage itself first."""


def _update(loss_sum: LossSum, params: Any, batch: Any, learning: Learning, rules: Rules) -> Step:
    check_divides("batch size", learning.batch_size // learning.accumulation, rules.batch)
    optimizer = make_optimizer(learning, _UPDATES)
    update = make_update(loss_sum, optimizer, seed=0, accumulation=learning.accumulation, rules=rules)
    state = _placed(jax.eval_shape(lambda params: start(params, optimizer), params))
    forward = (lambda params, batch: loss_sum(params, batch, jax.random.key(0, impl="rbg")), (params, batch))
    return Step(lambda: update.lower(state, batch), forward)


def _generator(experiment: GeneratorExperiment | TrainAdapters) -> tuple[nnx.GraphDef, Any, Rules]:
    model_kwargs = model_options(experiment.devices)
    storage: Storage = getattr(experiment, "storage", "float32")
    model = abstract_generator(_generator_config(experiment), storage=storage, **model_kwargs)
    graph, params = nnx.split(model)
    return graph, _placed(params), model_kwargs["rules"]


def _abstract_model(build: Callable[[dict[str, Any]], nnx.Module], experiment: Any) -> tuple[nnx.GraphDef, Any, Rules]:
    """Graph of a model, abstract parameters sharded on the current mesh, and sharding rules."""
    model_kwargs, graphs = model_options(experiment.devices), []

    def parameters() -> Any:
        graph, params = nnx.split(build(model_kwargs))
        graphs.append(graph)
        return params

    params = _placed(jax.eval_shape(parameters))
    return graphs[0], params, model_kwargs["rules"]


def _placed(tree: Any) -> Any:
    """Abstract arrays with their shardings on the current mesh."""
    mesh = jax.sharding.get_mesh()

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        spec = leaf.sharding.spec if leaf.sharding is not None else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


def _rows(shape: tuple[int, ...], rules: Rules, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    check_divides("batch size", shape[0], rules.batch)
    sharding = NamedSharding(jax.sharding.get_mesh(), rules.spec("batch"))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _array(shape: tuple[int, ...], spec: P, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(jax.sharding.get_mesh(), spec))


def _candidate_batch(learning: Learning, queries: int, candidates: int, length: int, rules: Rules) -> CandidateBatch:
    rows = learning.batch_size
    shapes: list[Any] = [
        _rows((rows, queries + candidates, length), rules),
        _rows((rows, candidates), rules, jnp.float32),
        _rows((rows, candidates), rules, jnp.bool_),
        _rows((rows,), rules, jnp.float32),
    ]
    return CandidateBatch(*shapes)


def _generator_config(experiment: GeneratorExperiment | TrainAdapters) -> GeneratorConfig:
    if isinstance(experiment, Train) and experiment.model == SCRATCH:
        raise LampError("--model scratch: its vocabulary size is known only after training; name a model")
    if Path(experiment.model).is_dir():
        return read_generator_config(experiment.model)
    name, published = experiment.model.rpartition("/")[2], published_configs()
    if name not in published:
        raise LampError(f"--model {experiment.model}: give a directory with {CONFIG}, or one of {', '.join(published)}")
    return published[name]


def _encoder_config(name: str, kind: type[BertConfig]) -> Any:
    if Path(name).is_dir():
        return read_config(Path(name), kind)
    published = {"facebook/contriever": BertConfig, "allenai/longformer-base-4096": LongformerConfig}
    if published.get(name) is not kind:
        raise LampError(f"{name}: give a directory with {CONFIG}, or one of {', '.join(published)}")
    return kind()


def _batch_size(experiment: GeneratorExperiment) -> int:
    return experiment.learning.batch_size if isinstance(experiment, Train) else experiment.batch_size


def _max_length(experiment: GeneratorExperiment) -> int:
    return experiment.max_length if isinstance(experiment, FeedbackItems) else experiment.prompting.max_length


def _up_to_multiple(number: int, of: int) -> int:
    return -(-number // of) * of
