"""Answers to batches of prompts: one jitted function per decoding method, and conversion of its output to text."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lamp_jax.config import Answering, Lora
from lamp_jax.decoding.beam import beam_search
from lamp_jax.decoding.constraints import make_constraint
from lamp_jax.decoding.generation import DEFAULT_GENERATION, Generation, searches_greedily
from lamp_jax.decoding.greedy import greedy_search
from lamp_jax.decoding.labels import score_labels
from lamp_jax.distributed import read
from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import NO_TOKEN, pad_rows
from lamp_jax.models.generator import GeneratorConfig, is_end
from lamp_jax.models.lora import Adapters, attach
from lamp_jax.tasks.catalog import Task


class Decoded(NamedTuple):
    """Answer, and if labels were scored their probabilities, float64 [L] in the task's order."""

    text: str
    probabilities: np.ndarray | None


class Answerer:
    """Generator that answers prompts as text. Compiles once per length of prompts."""

    def __init__(
        self,
        graph: nnx.GraphDef,
        tokenizer: Any,
        task: Task,
        answering: Answering,
        *,
        generation: Generation = DEFAULT_GENERATION,
        lora: Lora | None = None,
    ):
        if answering.decode == "labels" and not task.labels:
            raise LampError(f"--decode labels: {task.name} has no labels; use beam or greedy")
        self.tokenizer, self.task = tokenizer, task
        self.by_labels = answering.decode == "labels"
        labels = label_tokens(task, tokenizer) if self.by_labels else None
        self._decode = make_decoder(graph, answering, labels, generation=generation, lora=lora)

    def __call__(self, params: Any, source: jax.Array, adapters: Adapters | None = None) -> list[str]:
        """Answers to B prompts [B, S], gathered from all processes; with `lora`, `adapters` has one per prompt."""
        return [answer.text for answer in self.decode(params, source, adapters)]

    def decode(self, params: Any, source: jax.Array, adapters: Adapters | None = None) -> list[Decoded]:
        """Answers as those of a call, with the labels' probabilities."""
        result = read(self._decode(params, source, adapters))
        if self.by_labels:
            return [Decoded(choose_label(row, self.task), label_probabilities(row)) for row in result]
        rows = [row[row != NO_TOKEN] for row in result]
        return [Decoded(text.strip(), None) for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]


def label_probabilities(log_probabilities: np.ndarray) -> np.ndarray:
    """Probabilities of the labels, float64 [L], by softmax."""
    weights = np.exp(log_probabilities - np.max(log_probabilities), dtype=np.float64)
    return weights / weights.sum()


def choose_label(log_probabilities: np.ndarray, task: Task) -> str:
    """Best label for the task's metric, given the labels' log-probabilities [L].

    For accuracy the most probable label; for MAE the median: the first label, in their order, at which the cumulative
    probability reaches one half.
    """
    probabilities = label_probabilities(log_probabilities)
    if task.metric == "mae":
        return task.labels[int(np.searchsorted(np.cumsum(probabilities), 0.5))]
    return task.labels[int(np.argmax(probabilities))]


def label_tokens(task: Task, tokenizer: Any) -> np.ndarray:
    """Token ids of the labels, with `</s>`, [L, T] padded with NO_TOKEN."""
    rows: Sequence[Sequence[int]] = tokenizer(list(task.labels)).input_ids
    return pad_rows(rows, len(rows), max(map(len, rows)))


def without_padding(tokens: jax.Array, config: GeneratorConfig) -> jax.Array:
    """Generated tokens [B, T] with NO_TOKEN after the first end token: the tokenizer's padding id may differ."""
    ends = is_end(tokens, config)
    return jnp.where(jnp.cumsum(ends, axis=1) - ends > 0, NO_TOKEN, tokens)


def make_decoder(
    graph: nnx.GraphDef,
    answering: Answering,
    labels: np.ndarray | None,
    *,
    generation: Generation = DEFAULT_GENERATION,
    lora: Lora | None = None,
) -> Any:
    """Jitted function: parameters, prompts [B, S] -> tokens [B, T], or log-probabilities [B, L] of `labels` [L, T].

    `generation` are the generation settings in the model's files. With `lora`, the function has a further argument: the
    rows' adapters, with these settings.
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
