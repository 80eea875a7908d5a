"""CTranslate2 as a peer: conversion and loading of a generator. Imported in the peer's process only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamp_jax.bench.cases import Run
from lamp_jax.bench.models import tokens_of, words_of
from lamp_jax.runs.workers import available_cores


def open_translator(directory: str, kind: str) -> Any:
    """CTranslate2's model of a generator's directory, converted once; `kind` is the type of its products."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    converted = Path(directory, "ctranslate2")
    if not converted.exists():
        TransformersConverter(directory).convert(str(converted))
    return ctranslate2.Translator(
        str(converted), device="cpu", compute_type=kind, inter_threads=1, intra_threads=available_cores()
    )


def answers(translator: Any, prompts: Sequence[Sequence[int]], *, beams: int, new: int, batch: int) -> Run:
    """Function that returns the token ids of the best answers to prompts, in batches of similar length."""
    words = [words_of(one) for one in prompts]  # not timed

    def run() -> list[list[int]]:
        found = translator.translate_batch(words, beam_size=beams, max_decoding_length=new, max_batch_size=batch)
        return [tokens_of(" ".join(one.hypotheses[0])) for one in found]

    return run
