"""Numbers from texts: a dual encoder's vectors, a selector's scores, in batches of few shapes over the whole mesh."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from lamp_jax.config import Devices
from lamp_jax.data.pools import Pool
from lamp_jax.errors import LampError
from lamp_jax.hosts import read
from lamp_jax.inputs.batches import Example, choose_text_buckets, prediction_batches
from lamp_jax.inputs.selection import CandidateReader
from lamp_jax.inputs.tokenizer import load_tokenizer, tokenize
from lamp_jax.models.bert import NO_TOKEN, Bert, BertConfig
from lamp_jax.models.longformer import Longformer
from lamp_jax.models.weights import load_bert
from lamp_jax.retrieval.dense import Embed
from lamp_jax.sharding import DATA_PARALLEL, model_layout, on_cpu, own_rows, place_batch, shards

# Texts that are sorted by length together: enough to fill batches, few enough to hold their tokens.
_WINDOW = 8192

# Texts are padded to multiples of this: a forward pass compiles fast enough for so many lengths.
_LENGTHS_APART = 32

# Tokens of a batch for each device: a CPU's caches hold what it makes of few; an accelerator's units want many.
_CPU_TOKENS, _ACCELERATOR_TOKENS = 1024, 32768


def open_encoder(name: str, devices: Devices, *, max_length: int, batch_tokens: int | None = None) -> Embed:
    """The encoder of a directory or hub name, on the current mesh. LampError where it cannot read `max_length`."""
    tokenizer = load_tokenizer(name)
    model = load_bert(name, **model_layout(devices))
    check_length(model.config, max_length, name)
    graph, params = nnx.split(model)
    return partial(text_encoder(graph, tokenizer, max_length=max_length, batch_tokens=batch_tokens), params)


def text_encoder(graph: nnx.GraphDef, tokenizer: Any, *, max_length: int, batch_tokens: int | None = None) -> "Encoder":
    """Mean-pooled vectors of texts, [D] for each; `graph` is a Bert's."""
    lengths = (*range(_LENGTHS_APART, max_length, _LENGTHS_APART), max_length)

    def embed(params: Any, tokens: jax.Array) -> jax.Array:
        model: Bert = nnx.merge(graph, params)
        return model.embed(tokens)

    return Encoder(embed, partial(tokenize, tokenizer=tokenizer, max_length=max_length), lengths, batch_tokens)


def candidate_scorer(
    graph: nnx.GraphDef, reader: CandidateReader, *, batch_tokens: int | None = None
) -> Callable[[Any, Pool], dict[tuple[str, str], float]]:
    """(parameters, pool) -> a selector's score of every candidate, by question's id and retriever's name.

    `graph` is a Longformer's.
    """

    def score(params: Any, tokens: jax.Array) -> jax.Array:
        model: Longformer = nnx.merge(graph, params)
        return model.score(tokens)

    encoder = Encoder(score, reader, choose_text_buckets(reader.settings.max_length), batch_tokens)

    def score_pool(params: Any, pool: Pool) -> dict[tuple[str, str], float]:
        names = [(choice.id, name) for choice in pool.choices for name in choice.candidates]
        candidates = [one for choice in pool.choices for one in choice.candidates.values()]
        scores: dict[tuple[str, str], float] = {}
        for places, values in encoder(params, candidates):
            scores |= {names[place]: float(value) for place, value in zip(places, values, strict=True)}
        return scores

    return score_pool


def check_length(config: BertConfig, max_length: int, name: str) -> None:
    """LampError unless the encoder has positions for texts of `max_length` tokens."""
    if max_length > config.longest:
        raise LampError(
            f"{name}: reads texts of at most {config.longest} tokens, not {max_length}; "
            f"give --max-length {config.longest} or less"
        )


class Encoder:
    """What a model makes of texts, one by one. Compiles once for each length of texts.

    `apply` takes parameters and tokens [B, S] to an array [B, ...], `read` gives the token ids of texts. A batch has as
    many texts as make `batch_tokens` over all devices; None: as many as keep the devices busy.
    """

    def __init__(
        self,
        apply: Callable[[Any, jax.Array], jax.Array],
        read: Callable[[Sequence[Any]], list[list[int]]],
        lengths: Sequence[int],
        batch_tokens: int | None,
    ):
        self._apply, self._read = jax.jit(apply), read
        devices = shards(DATA_PARALLEL.batch)
        if batch_tokens is None:
            batch_tokens = devices * (_CPU_TOKENS if on_cpu() else _ACCELERATOR_TOKENS)
        self._rows = {length: max(1, batch_tokens // (length * devices)) * devices for length in lengths}

    def __call__(self, params: Any, texts: Sequence[Any]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Batches of (places of n texts, what the model makes of them: float32 [n, ...])."""
        with tqdm(total=len(texts), desc="embed", unit="text", disable=None) as bar:
            for start in range(0, len(texts), _WINDOW):
                rows = self._read(texts[start : start + _WINDOW])
                examples = [Example("", row) for row in rows]
                waiting: tuple[list[int], jax.Array] | None = None
                for places, batch in prediction_batches(examples, rows=self._rows, pad=NO_TOKEN, own=own_rows):
                    found = self._apply(params, place_batch(batch.source))
                    if waiting:  # read one batch late, so that the device is never idle
                        yield _whole(*waiting)
                    waiting = ([start + place for place in places], found)
                    bar.update(len(places))
                if waiting:
                    yield _whole(*waiting)


def _whole(places: list[int], vectors: jax.Array) -> tuple[list[int], np.ndarray]:
    return places, read(vectors)[: len(places)]  # rows beyond the places only fill the batch
