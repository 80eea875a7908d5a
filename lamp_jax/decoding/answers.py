"""How prompts become answers: one jitted function for each way of decoding, and what it says read as text."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lamp_jax.config import Answering, Lora
from lamp_jax.decoding.beam import beam_search
from lamp_jax.decoding.constraints import make_constraint
from lamp_jax.decoding.generation import NOTHING, Generation, searches_greedily
from lamp_jax.decoding.greedy import greedy_search
from lamp_jax.decoding.labels import score_labels
from lamp_jax.distributed import read
from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import NO_TOKEN, pad_rows
from lamp_jax.models.generator import GeneratorConfig, is_end
from lamp_jax.models.lora import Adapters, attach
from lamp_jax.tasks.catalog import Task


class Decoded(NamedTuple):
    """An answer, and where labels were scored their probabilities, float64 [L] in the task's order."""

    text: str
    probabilities: np.ndarray | None


class Answerer:
    """Answers of a generator to prompts. Compiles once for each length of prompts."""

    def __init__(
        self,
        graph: nnx.GraphDef,
        tokenizer: Any,
        task: Task,
        answering: Answering,
        *,
        generation: Generation = NOTHING,
        lora: Lora | None = None,
    ):
        if answering.decode == "labels" and not task.labels:
            raise LampError(f"--decode labels: {task.name} has no labels; use beam or greedy")
        self.tokenizer, self.task = tokenizer, task
        self.by_labels = answering.decode == "labels"
        labels = label_tokens(task, tokenizer) if self.by_labels else None
        self._decode = make_decoder(graph, answering, labels, generation=generation, lora=lora)

    def __call__(self, params: Any, source: jax.Array, adapters: Adapters | None = None) -> list[str]:
        """Prompts [B, S], with `lora` each with its own adapter, -> B answers, of all processes' in each of them."""
        return [answer.text for answer in self.decode(params, source, adapters)]

    def decode(self, params: Any, source: jax.Array, adapters: Adapters | None = None) -> list[Decoded]:
        """As a call, with the labels' probabilities."""
        result = read(self._decode(params, source, adapters))
        if self.by_labels:
            return [Decoded(choose_label(row, self.task), label_probabilities(row)) for row in result]
        rows = [row[row != NO_TOKEN] for row in result]
        return [Decoded(text.strip(), None) for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]


def label_probabilities(log_probabilities: np.ndarray) -> np.ndarray:
    """Softmax over the labels, float64 [L]."""
    weights = np.exp(log_probabilities - np.max(log_probabilities), dtype=np.float64)
    return weights / weights.sum()


def choose_label(log_probabilities: np.ndarray, task: Task) -> str:
    """The label [L] that is best for the task's metric.

    For accuracy the most probable one, for MAE the median: the first label, in their order, at which the cumulative
    probability reaches one half.
    """
    probabilities = label_probabilities(log_probabilities)
    if task.metric == "mae":
        return task.labels[int(np.searchsorted(np.cumsum(probabilities), 0.5))]
    return task.labels[int(np.argmax(probabilities))]


def label_tokens(task: Task, tokenizer: Any) -> np.ndarray:
    """The labels' token ids, `</s>` included, [L, T] padded with NO_TOKEN."""
    rows: Sequence[Sequence[int]] = tokenizer(list(task.labels)).input_ids
    return pad_rows(rows, len(rows), max(map(len, rows)))


def without_padding(tokens: jax.Array, config: GeneratorConfig) -> jax.Array:
    """Generated tokens [B, T] with NO_TOKEN after the first that ends: the tokenizer may pad with another id."""
    ends = is_end(tokens, config)
    return jnp.where(jnp.cumsum(ends, axis=1) - ends > 0, NO_TOKEN, tokens)


def make_decoder(
    graph: nnx.GraphDef,
    answering: Answering,
    labels: np.ndarray | None,
    *,
    generation: Generation = NOTHING,
    lora: Lora | None = None,
) -> Any:
    """The jitted (parameters, prompts [B, S]) -> tokens [B, T], or log-probabilities of the `labels` [L, T], [B, L].

    `generation` is what the model's files ask of a search. With `lora` it takes the rows' adapters of this form
    besides.
    """
    longest = generation.max_new_tokens or answering.generation_max_length - 1

    def decode(params: Any, source: jax.Array, adapters: Adapters | None = None) -> jax.Array:
        model = nnx.merge(graph, params)
        if lora is not None and adapters is not None:
            model = attach(model, adapters, lora)
        if labels is not None:
            return score_labels(model, source, jnp.asarray(labels))
        model.config = generation.configure(model.config)
        constrain = make_constraint(generation, model, source, max_new_tokens=longest)
        if searches_greedily(answering):
            tokens = greedy_search(model, source, max_new_tokens=longest, constrain=constrain)
        else:
            tokens = beam_search(
                model,
                source,
                num_beams=answering.num_beams,
                max_new_tokens=longest,
                length_penalty=generation.length_penalty,
                early_stopping=generation.early_stopping,
                constrain=constrain,
            ).tokens[:, 0]
        return without_padding(tokens, model.config)

    return jax.jit(decode)
