"""T5 (v1.0, and v1.1 / FLAN): encoding of sources, scoring of targets, and token-by-token decoding with a cache.

Raffel et al. 2020 (arXiv 1910.10683). The layers of a stack are one scan over stacked parameters.
"""

from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from lamp_jax.models import attention_kernel, step_kernel
from lamp_jax.models.attention import Attention, RelativePositions, drop_values, hide_padding
from lamp_jax.models.dropout import dropout, layer_keys, split_key
from lamp_jax.models.generator import decoder_inputs
from lamp_jax.models.kernels import (
    HIDDEN,
    NO_BIAS,
    AttentionOrder,
    as_cached_keys,
    as_cached_values,
    attend,
    attend_cached,
    attend_in_order,
    computed_once,
    step_loop,
    write_to_cache,
)
from lamp_jax.models.layers import (
    FeedForward,
    LayerLoop,
    Remat,
    RMSNorm,
    attention_result,
    look_up,
    normal,
    project,
    scan_layers,
)
from lamp_jax.models.step_kernel import attend_step
from lamp_jax.models.step_weight import StepWeight, arrange
from lamp_jax.models.t5_cache import CrossCache, LayerCache, SelfCache, empty_cache, scores_of_own
from lamp_jax.models.t5_config import T5Config
from lamp_jax.sharding import DATA_PARALLEL, Rules, check_divides

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class EncoderLayers(nnx.Module):
    """Stacked encoder layers: self-attention, then feed-forward, each after a norm and added to its input."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs, rules: Rules):
        count, hidden, factor = config.num_layers, config.d_model, config.initializer_factor
        sizes = {"factor": factor, "rngs": rngs, "rules": rules}
        self.attention_norm = _norm(config, count, rules)
        self.attention = Attention(count, hidden, config.num_heads, config.d_kv, **sizes)
        self.mlp_norm = _norm(config, count, rules)
        self.mlp = FeedForward(count, hidden, config.d_ff, kind=config.feed_forward_proj, **sizes)
        self.rate = config.dropout_rate

    def __call__(self, x: jax.Array, attend: Attend, key: jax.Array | None) -> jax.Array:
        """Output of one layer, [B, S, D] -> [B, S, D]; `attend` is a function of queries, keys and values."""
        key_values, key_attention, key_inner, key_mlp = split_key(key, 4)
        normed = self.attention_norm(x)
        keys, values = self.attention.keys_and_values(normed)
        values = drop_values(values, self.rate, key_values)
        heads = attend(self.attention.queries(normed), keys, values)
        x = attention_result(x + dropout(self.attention.mix(heads), self.rate, key_attention))
        mlp = self.mlp(self.mlp_norm(x), rate=self.rate, key=key_inner)
        return x + dropout(mlp, self.rate, key_mlp)


class DecoderLayers(nnx.Module):
    """Stacked decoder layers: self-attention, cross-attention, feed-forward."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs, rules: Rules):
        count, hidden, factor = config.num_decoder_layers, config.d_model, config.initializer_factor
        sizes = {"factor": factor, "rngs": rngs, "rules": rules}
        self.attention_norm = _norm(config, count, rules)
        self.attention = Attention(count, hidden, config.num_heads, config.d_kv, **sizes)
        self.cross_norm = _norm(config, count, rules)
        self.cross = Attention(count, hidden, config.num_heads, config.d_kv, **sizes)
        self.mlp_norm = _norm(config, count, rules)
        self.mlp = FeedForward(count, hidden, config.d_ff, kind=config.feed_forward_proj, **sizes)
        self.rate = config.dropout_rate

    def __call__(
        self,
        x: jax.Array,
        attend: Attend,
        attend_source: Attend,
        cross: Sequence[jax.Array],
        key: jax.Array | None,
    ) -> jax.Array:
        """Output of one layer for a complete target, [B, T, D]; `cross`: keys and values of the source.

        `attend` and `attend_source` are functions of queries, keys and values.
        """
        key_values, key_attention, key_source, key_cross, key_inner, key_mlp = split_key(key, 6)
        normed = self.attention_norm(x)
        keys, values = self.attention.keys_and_values(normed)
        values = drop_values(values, self.rate, key_values)
        heads = attend(self.attention.queries(normed), keys, values)
        x = attention_result(x + dropout(self.attention.mix(heads), self.rate, key_attention))
        keys, values = cross
        values = drop_values(values, self.rate, key_source)
        heads = attend_source(self.cross.queries(self.cross_norm(x)), keys, values)
        x = attention_result(x + dropout(self.cross.mix(heads), self.rate, key_cross))
        mlp = self.mlp(self.mlp_norm(x), rate=self.rate, key=key_inner)
        return x + dropout(mlp, self.rate, key_mlp)

    def step(
        self,
        x: jax.Array,
        attend_own: Callable[..., tuple[jax.Array, LayerCache]],
        cross: tuple[jax.Array, jax.Array, jax.Array],
        cache: LayerCache,
    ) -> tuple[jax.Array, LayerCache]:
        """Output of one layer for one token of every hypothesis, x [B, N, D], and the cache with its keys and values.

        `attend_own` is a function of queries, keys, values and the cache.
        """
        normed = self.attention_norm(x)
        keys, values = self.attention.keys_and_values(normed)
        heads, cache = attend_own(self.attention.queries(normed), keys, values, cache)
        x = x + self.attention.mix(heads)
        x = x + self.cross.mix(attend_cached(self.cross.queries(self.cross_norm(x)), *cross))
        return x + self.mlp(self.mlp_norm(x), rate=0.0, key=None), cache


def _norm(config: T5Config, layers: int | None, rules: Rules) -> RMSNorm:
    shape = (config.d_model,) if layers is None else (layers, config.d_model)
    return RMSNorm(shape, epsilon=config.layer_norm_epsilon, factor=config.initializer_factor, rules=rules)


def _positions(config: T5Config, direction: Literal["both", "past"], *, rngs: nnx.Rngs, rules: Rules):
    return RelativePositions(
        config.relative_attention_num_buckets,
        config.num_heads,
        max_distance=config.relative_attention_max_distance,
        direction=direction,
        deviation=config.initializer_factor * config.d_model**-0.5,
        rngs=rngs,
        rules=rules,
    )


class T5(nnx.Module):
    """T5 with a language-model head; initialized as in the original (Mesh TensorFlow), parameters in float32.

    `dtype` is the dtype of activations and matrix products; softmax, norms and logits are always float32.
    LampError if a size does not divide over the current mesh by the `rules`.
    """

    def __init__(
        self,
        config: T5Config,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        remat: Remat = "none",
        attention: AttentionOrder = "whole",
        loop: LayerLoop = "scanned",
        rules: Rules = DATA_PARALLEL,
    ):
        _check_sizes(config, rules)
        self.config, self.dtype, self.rules = config, jnp.dtype(dtype), rules
        self.remat: Remat = remat
        self.attention: AttentionOrder = attention
        self.loop: LayerLoop = loop
        shape, axes, factor = (config.vocab_size, config.d_model), ("vocab", "embed"), config.initializer_factor
        self.embedding = normal(rngs, shape, deviation=factor, rules=rules, axes=axes)
        self.encoder_positions = _positions(config, "both", rngs=rngs, rules=rules)
        self.encoder = EncoderLayers(config, rngs=rngs, rules=rules)
        self.encoder_norm = _norm(config, None, rules)
        self.decoder_positions = _positions(config, "past", rngs=rngs, rules=rules)
        self.decoder = DecoderLayers(config, rngs=rngs, rules=rules)
        self.step_layers: nnx.List[DecoderLayers] = nnx.List([])  # the decoder's, in the model that `for_steps` returns
        self.decoder_norm = _norm(config, None, rules)
        tied = config.tie_word_embeddings
        self.head = (
            None if tied else normal(rngs, shape, deviation=factor * config.d_model**-0.5, rules=rules, axes=axes)
        )

    @property
    def depth(self) -> int:
        """Number of layers of both stacks together."""
        return self.config.num_layers + self.config.num_decoder_layers

    def source_mask(self, tokens: jax.Array) -> jax.Array:
        """Padding mask [B, S]: True at every token that is not padding (NO_TOKEN or the config's padding id)."""
        return (tokens != self.config.pad_token_id) & (tokens >= 0)

    def encode(self, tokens: jax.Array, *, mask: jax.Array | None = None, key: jax.Array | None = None) -> jax.Array:
        """Encoder output, [B, S] -> [B, S, D]. `mask` [B, S] is True at tokens to read (default: all but padding)."""
        mask = self.source_mask(tokens) if mask is None else mask
        key_first, key_last, key_layers = split_key(key, 3)
        order = self._attention_order(tokens.shape)
        position, padding = self._source_scores(tokens.shape[1], order), hide_padding(mask)

        def attend_source(query, keys, values):
            return attend_in_order(query, keys, values, position, padding, order=order, rules=self.rules)

        def layer(x, xs):
            layers, key = xs
            return layers(x, attend_source, key), None

        x = dropout(self._embed(tokens), self.config.dropout_rate, key_first)
        keys = layer_keys(key_layers, self.config.num_layers)
        x, _ = scan_layers(layer, x, (self.encoder, keys), remat=self.remat, loop=self.loop)
        return dropout(self.encoder_norm(x), self.config.dropout_rate, key_last)

    def decode(
        self, target: jax.Array, encoded: jax.Array, source_mask: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits of the decoder, [B, T, V], float32, for inputs [B, T], encoded source [B, S, D] and its mask [B, S].

        Position t attends to the inputs up to t; `generator.decoder_inputs` makes them from labels.
        """
        key_first, key_last, key_layers = split_key(key, 3)
        order = self._attention_order(target.shape, by_rows=False)
        position, padding = self._causal_scores(target.shape[1], order), hide_padding(source_mask)

        def attend_target(query, keys, values):
            return attend_in_order(query, keys, values, position, NO_BIAS, order=order, rules=self.rules)

        def attend_source(query, keys, values):
            return attend_in_order(query, keys, values, NO_BIAS, padding, order=order, rules=self.rules)

        def layer(x, xs):
            layers, cross, key = xs
            cross = layers.cross.keys_and_values(encoded) if cross is None else cross
            return layers(x, attend_target, attend_source, cross, key), None

        x = dropout(self._embed(target), self.config.dropout_rate, key_first)
        keys = layer_keys(key_layers, self.config.num_decoder_layers)
        cross = self.decoder.cross.all_keys_and_values(encoded) if order == "kernel" else None
        x, _ = scan_layers(layer, x, (self.decoder, cross, keys), remat=self.remat, loop=self.loop)
        return self.logits(dropout(self.decoder_norm(x), self.config.dropout_rate, key_last))

    def target_logits(self, tokens: jax.Array, target: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Logits of each target token, [B, T, V], float32, for sources [B, S] and targets [B, T]."""
        encoder_key, decoder_key = split_key(key, 2)
        mask = self.source_mask(tokens)
        encoded = self.encode(tokens, mask=mask, key=encoder_key)
        return self.decode(decoder_inputs(target, self.config), encoded, mask, key=decoder_key)

    def read_source(self, tokens: jax.Array) -> CrossCache:
        """Cross-attention keys and values of sources [B, S] for every decoder layer."""
        mask = self.source_mask(tokens)
        encoded = self.encode(tokens, mask=mask)

        def read(layers: DecoderLayers) -> tuple[jax.Array, jax.Array]:
            keys, values = layers.cross.keys_and_values(encoded)
            return as_cached_keys(keys), as_cached_values(values)

        if self._unrolls_steps:
            keys, values = zip(*map(read, self._decoder_layers()), strict=True)
        else:
            _, (keys, values) = jax.lax.scan(lambda _, layers: (None, read(layers)), None, self.decoder)
        return CrossCache(keys, values, hide_padding(mask))

    @property
    def _steps_in_kernel(self) -> bool:
        return self.attention == "kernel" and step_kernel.fits(self.config.num_heads, self.config.d_kv, self.rules)

    @property
    def _unrolls_steps(self) -> bool:
        return step_loop(self.attention) == "unrolled"

    def _decoder_layers(self) -> list[DecoderLayers]:
        """The decoder's layers, each with its own parameters."""
        return [jax.tree.map(itemgetter(layer), self.decoder) for layer in range(self.config.num_decoder_layers)]

    def read_target(self, target: jax.Array, source: CrossCache) -> jax.Array:
        """Last decoder hidden states [B, T, D] of targets [B, T], given the cached source; no dropout."""
        position = self._causal_scores(target.shape[1])

        def attend_target(query, keys, values):
            return attend(query, keys, values, position, jnp.asarray(NO_BIAS))

        def attend_source(query, keys, values):
            return attend_cached(query, keys, values, source.padding)

        def layer(x, xs):
            layers, *cross = xs
            return layers(x, attend_target, attend_source, cross, None), None

        x = self._embed(decoder_inputs(target, self.config))
        if self._unrolls_steps:
            for xs in zip(self._decoder_layers(), source.keys, source.values, strict=True):
                x, _ = layer(x, xs)
        else:
            x, _ = scan_layers(layer, x, (self.decoder, source.keys, source.values), remat="none")
        return self.decoder_norm(x)

    def answer_context(self, tokens: jax.Array) -> jax.Array:
        """Start token before each answer, [B, 1]."""
        sharding = self.rules.out("batch", None)
        return jnp.full((len(tokens), 1), self.config.decoder_start_token_id, tokens.dtype, out_sharding=sharding)

    def for_steps(self) -> "T5":
        """This model with the decoder's weights arranged for `step`, where that is of use."""
        if not (self._unrolls_steps and self.rules.replicates_weights):
            return self
        model = jax.tree.map(lambda leaf: leaf, self)
        model.step_layers = nnx.List(self._decoder_layers())
        for layer in model.step_layers:
            arrange(layer.attention, query=1, key=1, value=1, output=2)
            arrange(layer.cross, query=1, output=2)
            arrange(layer.mlp, inner=1, gate=1, outer=1)
        head = self.embedding if self.head is None else self.head
        model.head = nnx.data(StepWeight(head[...]))  # [V, D], its outputs first
        return model

    def start(self, source: CrossCache, *, hypotheses: int, max_length: int) -> tuple[jax.Array, SelfCache]:
        """Start tokens [B, N], and an empty cache for N hypotheses of up to `max_length` tokens, for `step`."""
        config, rows = self.config, source.padding.shape[0]
        sharding = self.rules.out("batch", None)
        first = jnp.full((rows, hypotheses), config.decoder_start_token_id, jnp.int32, out_sharding=sharding)
        sizes = {"rows": rows, "hypotheses": hypotheses, "length": max_length, "dtype": self.dtype}
        loops = {"unrolled": self._unrolls_steps, "kernel": self._steps_in_kernel}
        return first, empty_cache(config, self.rules, **sizes, **loops)

    def step(
        self, tokens: jax.Array, position: jax.Array, cache: SelfCache, source: CrossCache
    ) -> tuple[jax.Array, SelfCache]:
        """Logits [B, N, V] after the tokens [B, N] at `position` (a scalar, from 0), float32, and the updated cache."""
        hypotheses, length = cache.writers.shape[1:]
        writers, start = cache.writers_at(position), position * hypotheses
        scores = scores_of_own(writers, self.decoder_positions.scores(jnp.arange(length) - position))

        def attend_own(layer, query, keys, values, cache):
            if self._steps_in_kernel:
                return attend_step(query, keys, values, cache, scores, layer=layer, start=start, rules=self.rules)
            cache = write_to_cache(cache, keys, values, layer=layer, start=start)
            keys, values = (jax.lax.dynamic_index_in_dim(of_all, layer, keepdims=False) for of_all in cache)
            return attend_cached(query, keys, values, scores), cache

        def layer(carry, xs):
            layers, number, keys, values = xs
            x, cache = carry
            return layers.step(x, partial(attend_own, number), (keys, values, source.padding), cache), None

        x = self._embed(tokens)
        if self._unrolls_steps:
            caches, layers = [], self.step_layers or self._decoder_layers()
            for of_layer, *xs in zip(cache.layers, layers, source.keys, source.values, strict=True):
                (x, of_layer), _ = layer((x, of_layer), (xs[0], 0, *xs[1:]))
                caches.append(of_layer)
        else:
            xs = (self.decoder, jnp.arange(self.config.num_decoder_layers), source.keys, source.values)
            (x, of_all), _ = scan_layers(layer, (x, cache.layers[0]), xs, remat="none")
            caches = [of_all]
        return self.logits(self.decoder_norm(x)), SelfCache(tuple(caches), writers)

    def choose(self, cache: SelfCache, parents: jax.Array) -> SelfCache:
        """Cache in which hypothesis n of a source continues its former hypothesis `parents[b, n]`, [B, N]."""
        return cache.choose(parents)

    def logits(self, x: jax.Array) -> jax.Array:
        """Logits of the decoder's last hidden states, [..., D] -> [..., V], float32."""
        head = self.embedding if self.head is None else self.head
        if self.config.scales_outputs:
            x = x * self.config.d_model**-0.5
        rows = "bt"[: x.ndim - 1]
        return project(f"{rows}d,vd->{rows}v", x, head, self.rules, dtype=jnp.dtype(jnp.float32))

    def _embed(self, tokens: jax.Array) -> jax.Array:
        """Embeddings of tokens, [B, T] -> [B, T, D]."""
        tokens = jnp.where(tokens < 0, self.config.pad_token_id, tokens)
        return look_up(self.embedding, tokens, self.rules, dtype=self.dtype)

    def _attention_order(self, tokens: tuple[int, ...], *, by_rows: bool = True) -> AttentionOrder:
        """Order of a self-attention over tokens [B, S]."""
        if self.attention != "kernel":
            return self.attention if by_rows else "whole"
        shape = (*tokens, self.config.num_heads, self.config.d_kv)
        return "kernel" if attention_kernel.fits(shape, shape, self.rules) else "whole"

    def _source_scores(self, length: int, order: AttentionOrder) -> jax.Array:
        """Position bias of the encoder's self-attention, [1, H, S, S]; by distance for a kernel, [H, 2 S]."""
        if order == "kernel":
            return self.encoder_positions.band(length)
        position = self.encoder_positions(length)
        return computed_once(position) if self.loop == "unrolled" else position

    def _causal_scores(self, length: int, order: AttentionOrder = "whole") -> jax.Array:
        """Position bias of the decoder's self-attention, very negative at later tokens, [1, H, T, T]; or [H, 2 T]."""
        if order == "kernel":
            return jnp.where(jnp.arange(-length + 1, length + 1) > 0, HIDDEN, self.decoder_positions.band(length))
        later = jnp.triu(jnp.ones((length, length), bool), k=1)
        return jnp.where(later, HIDDEN, self.decoder_positions(length))


def _check_sizes(config: T5Config, rules: Rules) -> None:
    check_divides("d_model", config.d_model, rules.embed)
    check_divides("num_heads", config.num_heads, rules.heads)
    check_divides("d_ff", config.d_ff, rules.mlp)
    check_divides("vocab_size", config.vocab_size, rules.vocab)
