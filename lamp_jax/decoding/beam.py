"""Beam search with the scores and the stopping rules of HF's `generate`."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lamp_jax.decoding.constraints import Constrain
from lamp_jax.models.generator import Cache, Generator, Source, end_tokens, is_end
from lamp_jax.sharding import gathered

# Score of impossible hypotheses; added to a candidate's score, it excludes the candidate.
_NEVER = -1e9

_BLOCK = 64
"""Number of values of a vocabulary among which the largest is found at once."""


class Beams(NamedTuple):
    """Finished hypotheses of every source, best first."""

    tokens: jax.Array
    """[B, K, T]: with `</s>` and padding after it, without start token."""
    scores: jax.Array
    """[B, K]: sum of log-probabilities / (number of tokens with `</s>`)^length_penalty; -1e9: no hypothesis."""


class _State(NamedTuple):
    length: jax.Array
    """Number of tokens of every live hypothesis; a scalar."""
    live_tokens: jax.Array
    """[B, K, T]: tokens of the live hypotheses."""
    live_scores: jax.Array
    """[B, K]: sums of log-probabilities, best first."""
    last: jax.Array
    """[B, K]: next input tokens of the model."""
    cache: Cache
    """Cache of the live hypotheses."""
    tokens: jax.Array
    """[B, K, T]: tokens of the finished hypotheses."""
    scores: jax.Array
    """[B, K]: scores of the finished hypotheses, with the length penalty, best first."""
    finished: jax.Array
    """[B, K]: whether this entry is a finished hypothesis."""
    open: jax.Array
    """[B]: whether further steps can still improve this source's hypotheses."""


class _Rules(NamedTuple):
    """Settings of a search step."""

    divisors: np.ndarray
    """[T]: length penalty of hypotheses of 1 to T tokens."""
    expected: np.ndarray
    """[T]: length penalty assumed for the final length of live hypotheses of 1 to T tokens."""
    stop_when_full: bool
    """Whether a source is done as soon as K hypotheses have finished."""
    constrain: Constrain | None


def beam_search(
    model: Generator,
    tokens: jax.Array,
    *,
    num_beams: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    constrain: Constrain | None = None,
) -> Beams:
    """Beam search: the `num_beams` (K) best finished hypotheses of up to `max_new_tokens` (T) tokens per source [B, S].

    Every step extends the K live hypotheses by one token, whose log-probability `constrain` may change, and keeps the
    best 2K candidates ((1 + E)K with E > 1 end tokens). Those of the first K that end with `</s>` (at the
    last step: all) compete for the K finished entries; the best K of the others stay live. A source is done when its
    best live sum, divided by its present length^length_penalty, is not above its worst finished score; with
    `early_stopping` also when K have finished; with "never" the length is the maximum if the penalty favours long
    hypotheses. HF's `max_length` counts the start token: it is max_new_tokens + 1. To be jitted by the caller with
    static numbers; the source's keys and values are shared by all hypotheses.
    """
    divisors = (np.arange(1.0, max_new_tokens + 1) ** length_penalty).astype(np.float32)
    longest = early_stopping == "never" and length_penalty > 0
    expected = np.full_like(divisors, divisors[-1]) if longest else divisors
    rules = _Rules(divisors, expected, early_stopping is True, constrain)
    source = model.read_source(tokens)
    start = _start(model, source, num_beams=num_beams, max_new_tokens=max_new_tokens)

    def unfinished(state: _State) -> jax.Array:
        return (state.length < max_new_tokens) & jnp.any(state.open)

    stepping = model.for_steps()

    def step(state: _State) -> _State:
        return _step(stepping, source, state, rules)

    end = jax.lax.while_loop(unfinished, step, start)
    return Beams(end.tokens, end.scores)


def _start(model: Generator, source: Source, *, num_beams: int, max_new_tokens: int) -> _State:
    last, cache = model.start(source, hypotheses=num_beams, max_length=max_new_tokens)
    places = jnp.zeros_like(last)  # sharded over the batch, as are all arrays made from it
    blank = jnp.broadcast_to(places[:, :, None], (*places.shape, max_new_tokens)) + model.config.pad_token_id
    zeros = places.astype(jnp.float32)
    return _State(
        length=jnp.int32(0),
        live_tokens=blank,
        # All hypotheses are equal at the start: only the first is extended.
        live_scores=zeros + jnp.where(jnp.arange(num_beams) == 0, 0.0, _NEVER),
        last=last,
        cache=cache,
        tokens=blank,
        scores=zeros + _NEVER,
        finished=places != 0,
        open=jnp.sum(places, axis=1) == 0,
    )


def _step(model: Generator, source: Source, state: _State, rules: _Rules) -> _State:
    num_beams, max_new_tokens = state.live_tokens.shape[1:]
    best, cache = _extend(model, source, state, rules.constrain)
    length = state.length + 1
    divisor = jnp.asarray(rules.divisors)[state.length]
    ends = is_end(best.last, model.config) | (length == max_new_tokens)

    # Only the first K may finish; the other candidates ensure that K stay live, however many of the first K end.
    may_finish = ends & state.open[:, None] & (jnp.arange(best.sums.shape[1]) < num_beams)
    entries = jnp.concatenate([state.scores, best.sums / divisor + jnp.where(may_finish, 0.0, _NEVER)], axis=1)
    scores, places = jax.lax.top_k(entries, num_beams)
    finished = _pick(jnp.concatenate([state.finished, may_finish], axis=1), places)

    live_scores, chosen = jax.lax.top_k(best.sums + jnp.where(ends, _NEVER, 0.0), num_beams)
    best_possible = jnp.max(live_scores, axis=1, keepdims=True) / jnp.asarray(rules.expected)[state.length]
    worst_finished = jnp.where(finished, jnp.min(scores, axis=1, keepdims=True), _NEVER)
    gains = jnp.any(best_possible > worst_finished, axis=1)
    if rules.stop_when_full:
        gains &= ~jnp.all(finished, axis=1)
    return _State(
        length=length,
        live_tokens=_pick(best.tokens, chosen),
        live_scores=live_scores,
        last=_pick(best.last, chosen),
        cache=model.choose(cache, _pick(best.parents, chosen)),
        tokens=_pick(jnp.concatenate([state.tokens, best.tokens], axis=1), places),
        scores=scores,
        finished=finished,
        open=state.open & gains,
    )


class _Candidates(NamedTuple):
    """Best one-token extensions of the live hypotheses, best first; N = 2K, or (1 + E)K with E > 1 end tokens."""

    sums: jax.Array
    """[B, N]: sums of log-probabilities."""
    parents: jax.Array
    """[B, N]: index of the live hypothesis that each candidate extends."""
    last: jax.Array
    """[B, N]: the new token."""
    tokens: jax.Array
    """[B, N, T]: the tokens of each candidate."""


def _extend(model: Generator, source: Source, state: _State, constrain: Constrain | None) -> tuple[_Candidates, Cache]:
    num_beams, max_new_tokens = state.live_tokens.shape[1:]
    logits, cache = model.step(state.last, state.length, state.cache, source)

    # [B, K, V] -> [B, K * V]; top_k needs the complete vocabulary on one device.
    logits = gathered(logits, model.rules.spec("batch", None, None))
    kept = max(2, 1 + len(end_tokens(model.config))) * num_beams
    if constrain:
        scores = constrain(jax.nn.log_softmax(logits, axis=-1), state.live_tokens, state.length)
        scores, tokens = largest(scores, min(kept, scores.shape[-1]))
    else:  # log-probabilities of the best alone
        scores, tokens = largest(logits, min(kept, logits.shape[-1]))
        scores = scores - _log_total(logits)
    sums = scores + state.live_scores[:, :, None]
    best, index = jax.lax.top_k(sums.reshape(len(sums), -1), kept)
    parents = index // tokens.shape[-1]
    last = _pick(tokens.reshape(len(tokens), -1), index).astype(state.last.dtype)
    here = jnp.arange(max_new_tokens) == state.length
    tokens = jnp.where(here, last[:, :, None], _pick(state.live_tokens, parents))
    return _Candidates(best, parents, last, tokens), cache


def _log_total(logits: jax.Array) -> jax.Array:
    """Logarithm of the sum of exp(logits), [B, N, V] -> [B, N, 1]."""
    by_token = jnp.moveaxis(logits, -1, 0)  # the order in which a CPU's `step` computes them
    by_token = by_token.reshape(len(by_token), -1)  # a CPU reduces [V, B, 1] ten times as slowly as [V, B]
    highest = jnp.max(by_token, axis=0)
    total = highest + jnp.log(jnp.sum(jnp.exp(by_token - highest), axis=0))
    return total.reshape(*logits.shape[:-1], 1)


def largest(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` of a long last axis, [B, N, V] -> two of [B, N, count].

    The `count` largest values, the first of equal ones, are in the `count` blocks whose maxima are largest: only
    these blocks are sorted.
    """
    size = values.shape[-1]
    blocks = size // _BLOCK
    if blocks <= 2 * count:
        return jax.lax.top_k(values, count)
    by_token = jnp.moveaxis(values, -1, 0)  # the order in which a CPU's `step` computes them
    cut = by_token[: blocks * _BLOCK].reshape(blocks, _BLOCK, *by_token.shape[1:])
    highest = jnp.moveaxis(jnp.max(cut, axis=1), 0, -1)
    chosen = jnp.sort(jax.lax.top_k(highest, count)[1], axis=-1)  # in order, as ties are
    places = (chosen[..., None] * _BLOCK + jnp.arange(_BLOCK)).reshape(*chosen.shape[:-1], count * _BLOCK)
    places = jnp.concatenate([places, jnp.zeros_like(places[..., :1]) + jnp.arange(blocks * _BLOCK, size)], axis=-1)
    of_column = jax.vmap(lambda column, rows: column[rows], in_axes=(1, 0))
    inside = jax.vmap(of_column, in_axes=(1, 0))(by_token, places)
    found, index = jax.lax.top_k(inside, count)
    return found, jax.vmap(_pick)(places, index)


def _pick(values: jax.Array, index: jax.Array) -> jax.Array:
    """Gather along axis 1, values[b, index[b, k]]: [B, N, ...] and [B, K] -> [B, K, ...]."""
    return jax.vmap(lambda row, chosen: row[chosen])(values, index)
