"""Logits processors for the settings of a model's `generation_config.json`, in transformers' order."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lamp_jax.decoding.generation import Generation
from lamp_jax.models.generator import Generator, GeneratorConfig, end_tokens

Constrain = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""Function: scores [B, K, V] of the next tokens, hypotheses [B, K, T], their number of tokens -> scores [B, K, V]."""


class _Context(NamedTuple):
    """Context of the next token of one hypothesis; arrays may have leading axes for several."""

    text: jax.Array
    """[C + T]: the tokens before the answer, then the generated ones; V at padding and at future positions."""
    end: jax.Array
    """Position of the next token in the text; a scalar."""
    length: jax.Array
    """Number of generated tokens; a scalar."""
    source: jax.Array
    """[S]: the source's tokens; V at padding."""


_Change = Callable[[jax.Array, _Context], jax.Array]
"""Function: scores [V], context of one hypothesis -> scores [V]."""


def make_constraint(
    generation: Generation, model: Generator, sources: jax.Array, *, max_new_tokens: int
) -> Constrain | None:
    """Composition of all changes for answers of a model to sources [B, S]; None without changes."""
    changes = list(_changes(generation, model.config, max_new_tokens))
    if not changes:
        return None
    vocabulary, before = model.config.vocab_size, model.answer_context(sources)
    before = jnp.where(before < 0, vocabulary, before)
    sources = jnp.where(model.source_mask(sources), sources, vocabulary)

    def constrain(scores: jax.Array, tokens: jax.Array, length: jax.Array) -> jax.Array:
        def change(scores: jax.Array, tokens: jax.Array, before: jax.Array, source: jax.Array) -> jax.Array:
            generated = jnp.where(jnp.arange(len(tokens)) < length, tokens, vocabulary)
            text = jnp.concatenate([before, generated])
            for one in changes:
                scores = one(scores, _Context(text, len(before) + length, length, source))
            return scores

        return jax.vmap(jax.vmap(change, in_axes=(0, 0, None, None)))(scores, tokens, before, sources)

    return constrain


def _changes(asked: Generation, config: GeneratorConfig, max_new_tokens: int) -> Iterator[_Change]:
    """Changes to the scores, in transformers' order."""
    vocabulary, ends = config.vocab_size, end_tokens(config)
    bad_words = [(words, -np.inf) for words in asked.bad_words_ids if words not in [(end,) for end in ends]]
    some = partial(_among, vocabulary=vocabulary)
    if asked.sequence_bias:
        yield _add_biases(asked.sequence_bias)
    if asked.encoder_repetition_penalty != 1:
        yield lambda scores, context: _penalize(scores, context.source, 1 / asked.encoder_repetition_penalty)
    if asked.repetition_penalty != 1:
        yield lambda scores, context: _penalize(scores, context.text, asked.repetition_penalty)
    if size := asked.no_repeat_ngram_size:
        yield lambda scores, context: _ban(scores, _next_in(context.text, context, size))
    if source_size := asked.encoder_no_repeat_ngram_size:
        yield lambda scores, context: _ban(scores, _next_in(context.source, context, source_size))
    if bad_words:
        yield _add_biases(bad_words)
    if least := asked.min_new_tokens:
        yield lambda scores, context: jnp.where(some(ends) & (context.length < least), -jnp.inf, scores)
    if asked.forced_bos_token_id is not None:
        yield _force(some([asked.forced_bos_token_id]), at=0)
    if asked.forced_eos_token_id:
        yield _force(some(asked.forced_eos_token_id), at=max_new_tokens - 1)
    if asked.remove_invalid_values:
        yield lambda scores, _: jnp.nan_to_num(scores)
    if asked.exponential_decay_length_penalty:
        yield _raise_ends(some(ends), *asked.exponential_decay_length_penalty, max_new_tokens)
    if asked.suppress_tokens:
        yield lambda scores, _: jnp.where(some(asked.suppress_tokens), -jnp.inf, scores)
    if asked.begin_suppress_tokens:
        first = 0 if asked.forced_bos_token_id is None else 1
        begin = some(asked.begin_suppress_tokens)
        yield lambda scores, context: jnp.where(begin & (context.length == first), -jnp.inf, scores)
    if asked.renormalize_logits:
        yield lambda scores, _: jax.nn.log_softmax(scores)


def _among(tokens: Iterable[int], *, vocabulary: int) -> np.ndarray:
    """Mask [V] bool: True at these tokens."""
    return np.isin(np.arange(vocabulary), [*tokens])


def _add_biases(biases: Iterable[tuple[Sequence[int], float]]) -> _Change:
    """Sequence bias: added to the score of a sequence's last token if its other tokens were generated last."""
    groups: dict[int, dict[tuple[int, ...], float]] = defaultdict(dict)
    for tokens, bias in biases:
        groups[len(tokens) - 1][tuple(tokens)] = bias

    def add(scores: jax.Array, context: _Context) -> jax.Array:
        total = jnp.zeros_like(scores)
        for size, group in groups.items():
            sequences, values = np.array([*group], np.int32), np.array([*group.values()], np.float32)
            fits = jnp.all(_tail(context, size) == sequences[:, :-1], axis=1)
            total = total.at[sequences[:, -1]].add(jnp.where(fits, values, 0.0))
        return scores + total

    return add


def _penalize(scores: jax.Array, tokens: jax.Array, penalty: float) -> jax.Array:
    """Repetition penalty: these tokens become less probable, or with a penalty below 1 more probable."""
    changed = jnp.where(scores < 0, scores * penalty, scores / penalty)
    return jnp.where(_marked(scores, tokens), changed, scores)


def _ban(scores: jax.Array, tokens: jax.Array) -> jax.Array:
    return jnp.where(_marked(scores, tokens), -jnp.inf, scores)


def _marked(scores: jax.Array, tokens: jax.Array) -> jax.Array:
    """Mask [V] bool: True at these tokens; ids outside the vocabulary are ignored."""
    return jnp.zeros_like(scores, bool).at[tokens].set(True, mode="drop")


def _next_in(tokens: jax.Array, context: _Context, size: int) -> jax.Array:
    """Tokens after each occurrence in `tokens` of the hypothesis's last `size` - 1; elsewhere an id outside the
    vocabulary."""
    places = np.arange(max(len(tokens) - size + 1, 0))[:, None] + np.arange(size)
    windows = tokens[places]
    fits = jnp.all(windows[:, :-1] == _tail(context, size - 1), axis=1)
    return jnp.where(fits, windows[:, -1], jnp.iinfo(tokens.dtype).max)


def _tail(context: _Context, size: int) -> jax.Array:
    """Last `size` tokens of a hypothesis; -1, which is no token, if there are fewer."""
    if size > len(context.text):
        return jnp.full(size, -1)
    found = jax.lax.dynamic_slice(context.text, [jnp.maximum(context.end - size, 0)], [size])
    return jnp.where(context.end >= size, found, -1)


def _force(tokens: np.ndarray, *, at: int) -> _Change:
    """Allows only these tokens [V] as the generated token number `at`, from 0."""
    only = np.where(tokens, 0.0, -np.inf).astype(np.float32)
    return lambda scores, context: jnp.where(context.length == at, only, scores)


def _raise_ends(ends: np.ndarray, start: int, factor: float, max_new_tokens: int) -> _Change:
    """Raises the score of the end tokens [V] by a factor that grows with every token after `start`."""
    steps = np.maximum(np.arange(max_new_tokens) - start, 0)
    growth = (np.float64(factor) ** steps - 1).astype(np.float32)

    def change(scores: jax.Array, context: _Context) -> jax.Array:
        more = jnp.abs(scores) * jnp.asarray(growth)[context.length]
        return jnp.where(ends & jnp.isfinite(scores), scores + more, scores)

    return change
