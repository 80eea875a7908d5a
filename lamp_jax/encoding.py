"""Encoding of texts in batches of few shapes over the mesh: vectors of dual encoders, scores of selectors."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm.auto import tqdm

from lamp_jax.artifacts.selector import CandidateSet
from lamp_jax.config import CORRECT, Compatibility, Devices, Encoding
from lamp_jax.data.files import Question
from lamp_jax.distributed import read
from lamp_jax.inputs.batches import Example, choose_text_buckets, prediction_batches
from lamp_jax.inputs.reader import TextReader
from lamp_jax.inputs.selector import CandidateReader
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.models.bert import NO_TOKEN, Bert, BertConfig
from lamp_jax.models.longformer import Longformer
from lamp_jax.models.weights import CONFIG, check_tokenizer, find_model, load_bert, read_json
from lamp_jax.retrieval.dense import rank_dense
from lamp_jax.retrieval.encoders import EncoderSettings, FoundEncoder, choose_settings, find_encoder
from lamp_jax.retrieval.scored import Ranked
from lamp_jax.retrieval.vectors import WINDOW, Embed
from lamp_jax.runs.library import TemporaryOutput
from lamp_jax.sharding import DATA_PARALLEL, mesh_is_set, model_options, on_cpu, own_rows, place_batch, shards
from lamp_jax.tasks.catalog import Task

# Texts are padded to multiples of this number: a forward pass compiles fast enough for so many lengths.
_LENGTHS_APART = 32

# Tokens per batch and device: a CPU's caches hold the activations of few; an accelerator needs many.
_CPU_TOKENS, _ACCELERATOR_TOKENS = 1024, 32768


@dataclass(frozen=True, repr=False, eq=False)
class DualEncoder:
    """Embedding functions of queries and documents; the same function if both are encoded alike."""

    queries: Embed
    documents: Embed
    settings: EncoderSettings
    name: str
    """Directory or hub name of the encoder."""
    mesh: Mesh | None
    """Mesh on which it computes; None: no mesh was set."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Result of its training: `before` and `best`, the rewards on validation, `best_step`, `step`."""
    temporary: TemporaryOutput | None = None
    """Temporary directory, which is removed with the encoder."""

    def __repr__(self) -> str:
        return f"DualEncoder({self.name!r}, {self.settings})"


def open_encoder(
    name: str,
    devices: Devices,
    encoding: Encoding = Encoding(),  # noqa: B008 (frozen)
    *,
    max_length: int | None = None,
    batch_tokens: int | None = None,
) -> DualEncoder:
    """Dual encoder of a directory or hub name, on the current mesh; unset options are taken from its files.

    LampError if its files cannot be used, or it does not support texts of these lengths.
    """
    found = find_encoder(name, find_model(name))
    reader = open_reader(found, encoding, max_length=max_length)
    graph, params = nnx.split(load_bert(found.source, **model_options(devices)))
    encoders = TextEncoders(graph, reader, batch_tokens=batch_tokens)
    queries = partial(encoders.queries, params)
    documents = queries if encoders.queries is encoders.documents else partial(encoders.documents, params)
    mesh = jax.sharding.get_mesh() if mesh_is_set() else None
    return DualEncoder(queries, documents, reader.settings, name, mesh)


def rank_by_encoder(
    questions: Iterable[Question],
    task: Task,
    encoder: DualEncoder,
    *,
    use_date: bool = False,
    compatibility: Compatibility = CORRECT,
) -> Iterator[Ranked]:
    """Rankings of the questions' profiles by an encoder, on the current mesh. LampError as rank_dense."""
    queries = None if encoder.queries is encoder.documents else encoder.queries
    return rank_dense(
        questions,
        task,
        encoder.documents,
        embed_query=queries,
        similarity=encoder.settings.similarity,
        use_date=use_date,
        compatibility=compatibility,
    )


def open_reader(found: FoundEncoder, encoding: Encoding, *, max_length: int | None) -> TextReader:
    """Text reader of an encoder with its chosen settings. LampError as `open_encoder`."""
    tokenizer, config = load_tokenizer(found.source), find_model(found.source) / CONFIG
    check_tokenizer(tokenizer, found.source, BertConfig)
    positions = BertConfig.from_hf(read_json(config), source=str(config)).longest
    longest = tokenizer.model_max_length  # without a limit, a very large number
    return TextReader(
        tokenizer, choose_settings(found, encoding, max_length=max_length, longest=longest, positions=positions)
    )


class TextEncoders:
    """Encoders of queries and documents into vectors [D]; `graph` is a Bert's. The same `Encoder` if both are read
    alike."""

    def __init__(self, graph: nnx.GraphDef, reader: TextReader, *, batch_tokens: int | None = None):
        self.settings = settings = reader.settings
        embeds = {skip: _embedder(graph, settings, skip) for skip in reader.skips}

        def encoder(read: Callable[[Sequence[str]], list[list[int]]], length: int, skip: int) -> "Encoder":
            lengths = (*range(_LENGTHS_APART, length, _LENGTHS_APART), length)
            return Encoder(embeds[skip], read, lengths, batch_tokens)

        self.documents = encoder(reader.documents, settings.document_length, reader.skips[1])
        self.queries = self.documents
        if not settings.same_texts:
            self.queries = encoder(reader.queries, settings.query_length, reader.skips[0])


def _embedder(graph: nnx.GraphDef, settings: EncoderSettings, skip: int) -> Callable[[Any, jax.Array], jax.Array]:
    def embed(params: Any, tokens: jax.Array) -> jax.Array:
        model: Bert = nnx.merge(graph, params)
        return model.embed(tokens, pooling=settings.pooling, normalize=settings.normalize, skip=skip)

    return embed


def candidate_scorer(
    graph: nnx.GraphDef, reader: CandidateReader, *, batch_tokens: int | None = None
) -> Callable[[Any, CandidateSet], dict[tuple[str, str], float]]:
    """Function (parameters, candidates) -> a selector's score of every candidate, by question id and retriever.

    `graph` is a Longformer's.
    """

    def score(params: Any, tokens: jax.Array) -> jax.Array:
        model: Longformer = nnx.merge(graph, params)
        return model.score(tokens)

    encoder = Encoder(score, reader, choose_text_buckets(reader.settings.max_length), batch_tokens)

    def score_candidates(params: Any, data: CandidateSet) -> dict[tuple[str, str], float]:
        names = [(question.id, name) for question in data.questions for name in question.candidates]
        candidates = [one for question in data.questions for one in question.candidates.values()]
        scores: dict[tuple[str, str], float] = {}
        for places, values in encoder(params, candidates):
            scores |= {names[place]: float(value) for place, value in zip(places, values, strict=True)}
        return scores

    return score_candidates


class Encoder:
    """Application of a model to texts in batches, compiled once per length of texts.

    `apply` is a function of parameters and tokens [B, S] that returns an array [B, ...]; `read` returns the token ids
    of texts. A batch has about `batch_tokens` tokens over all devices; None: as many as keep the devices busy.
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
        """Batches of the results: (indices of n texts, the model's output for them, float32 [n, ...])."""
        with tqdm(total=len(texts), desc="embed", unit="text", disable=None, leave=None) as bar:
            for start in range(0, len(texts), WINDOW):
                rows = self._read(texts[start : start + WINDOW])
                examples = [Example("", row) for row in rows]
                waiting: tuple[list[int], jax.Array] | None = None
                for places, batch in prediction_batches(examples, rows=self._rows, pad=NO_TOKEN, own=own_rows):
                    found = self._apply(params, place_batch(batch.source))
                    if waiting:  # results are read one batch late, so that the device is never idle
                        yield _gather(*waiting)
                    waiting = ([start + place for place in places], found)
                    bar.update(len(places))
                if waiting:
                    yield _gather(*waiting)


def _gather(places: list[int], vectors: jax.Array) -> tuple[list[int], np.ndarray]:
    return places, read(vectors)[: len(places)]  # the other rows are padding
