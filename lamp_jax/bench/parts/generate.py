"""Beam search against CTranslate2 and transformers: equal answers, and time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lamp_jax.bench.cases import Case, Dtype, Run, Side, Size, same_rows
from lamp_jax.bench.flops import Products
from lamp_jax.bench.models import SEED, draw_tokens, made_generator, published, tokens_of
from lamp_jax.bench.workers import Workers

BEAMS = 4
TASK = "LaMP-4"
Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Search:
    """Beam search for answers to `rows` prompts in batches."""

    name: str
    rows: int
    source: int
    new: int
    batch: int
    model: str = "t5-small"
    tiny: bool = False
    ends: float = 0.0
    """How likely an answer ends at each token (`make_generator`)."""
    dtype: Dtype = "float32"
    cuda: bool = False
    slow_peer: bool = False
    """Whether transformers takes a minute: it runs once, the others twice."""
    least: float = 0.9
    """Share of answers that must be equal to transformers'. In float32, near-ties can be decided otherwise."""


_ENDS = 3.0
SEARCHES: dict[Size, tuple[Search, ...]] = {
    "smoke": (
        Search("tiny, 4 x 16 tokens, at most 12 new", 4, 16, 12, 2, tiny=True, ends=_ENDS, least=1.0),
        Search("tiny, bfloat16, 4 x 16 tokens, 8 new", 4, 16, 8, 4, tiny=True, dtype="bfloat16"),
    ),
    "full": (
        Search("T5-small, 16 x 256 tokens, 32 new", 16, 256, 32, 16),
        Search("T5-small, 16 x 256 tokens, 127 new", 16, 256, 127, 16, slow_peer=True),
        Search("T5-small, 16 x 256 tokens, 4 new", 16, 256, 4, 16),
        Search("T5-small, answers that end, at most 127 new", 16, 256, 127, 16, ends=_ENDS, slow_peer=True),
        Search("T5-small, bfloat16, 16 x 256 tokens, 32 new", 16, 256, 32, 16, dtype="bfloat16"),
        Search("T5-small, one at a time, 4 x 256 tokens, 32 new", 4, 256, 32, 1),
    ),
    "gpu": (
        Search("FLAN-T5-base, 64 x 512 tokens, 127 new", 64, 512, 127, 64, "flan-t5-base", dtype="bfloat16", cuda=True),
        Search(
            "FLAN-T5-large, 64 x 512 tokens, 127 new", 64, 512, 127, 64, "flan-t5-large", dtype="bfloat16", cuda=True
        ),
    ),
}


def cases(size: Size, folder: Path, workers: Workers) -> Iterator[Case]:
    """Cases of the size; the models are written below `folder`."""
    for search in SEARCHES[size]:
        config = published(search.model, tiny=search.tiny)
        place = folder / f"{search.model}-{search.tiny}-{search.ends}"
        directory = made_generator(workers, place, config, ends=search.ends)
        rng = np.random.default_rng(SEED)
        prompts = [draw_tokens(rng, search.source, config.vocab_size) for _ in range(search.rows)]
        yield Case(
            search.name,
            Side("lamp", partial(lamp_answers, directory, prompts, search)),
            [*_peers(directory, prompts, search)],
            partial(same_rows, least=search.least),
            flops=search.rows * Products(config).beam(search.source, search.new, BEAMS) if not search.ends else 0.0,
            dtype=search.dtype,
            rounds=2 if search.slow_peer else 3,
        )


def _peers(directory: str, prompts: Prompts, search: Search) -> Iterator[Side]:
    exact = search.dtype == "float32"
    run = partial(transformers_answers, directory, prompts, search)
    yield Side("transformers", run, slow=search.slow_peer, exact=exact)
    if not search.cuda:
        for kind in ("float32", "int8"):
            run = partial(ctranslate2_answers, directory, prompts, search, kind)
            yield Side("ctranslate2", run, f"ctranslate2 {kind}", exact=exact and kind == "float32")


def lamp_answers(directory: str, prompts: Prompts, search: Search) -> Run:
    import lamp_jax as lamp
    from lamp_jax.results import QuestionPrompt

    model = lamp.load(directory, dtype=search.dtype)
    rows = [QuestionPrompt(str(n), str(n), TASK, "", tuple(one), 0, False) for n, one in enumerate(prompts)]

    def run() -> list[list[int]]:
        answers = lamp.generate(
            model, rows, num_beams=BEAMS, generation_max_length=search.new + 1, batch_size=search.batch
        )
        return [tokens_of(answer.text) for answer in answers]

    return run


def transformers_answers(directory: str, prompts: Prompts, search: Search) -> Run:
    from lamp_jax.bench.torch_side import answer_tokens, load_peer, padded

    model = load_peer(directory, dtype=search.dtype, cuda=search.cuda)

    def run() -> list[list[int]]:
        answers = []
        for start in range(0, len(prompts), search.batch):
            source = padded(prompts[start : start + search.batch], model.device)
            found = model.generate(
                source, attention_mask=source != 0, num_beams=BEAMS, max_new_tokens=search.new, do_sample=False
            )
            answers += answer_tokens(found)
        return answers

    return run


def ctranslate2_answers(directory: str, prompts: Prompts, search: Search, kind: str) -> Run:
    from lamp_jax.bench.ctranslate2_side import answers, open_translator

    translator = open_translator(directory, kind)
    return answers(translator, prompts, beams=BEAMS, new=search.new, batch=search.batch)
