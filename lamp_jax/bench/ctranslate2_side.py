"""CTranslate2 as a peer: conversion and loading of a generator. Imported in the peer's process only."""

from pathlib import Path
from typing import Any

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
