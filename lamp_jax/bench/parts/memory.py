"""Peak memory of the stages that rank a file, beside that of the same stage on one question."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lamp_jax.bench.cases import Case, Run, Side, Size
from lamp_jax.bench.commands import run_lamp
from lamp_jax.bench.texts import TASK, draw_questions, write_questions
from lamp_jax.bench.workers import Workers


@dataclass(frozen=True)
class File:
    """Questions in a file, whose words a tiny encoder reads: memory does not depend on the encoder's size."""

    questions: int
    items: int
    words: int


SIZES: dict[Size, File] = {"smoke": File(3, 4, 8), "full": File(400, 185, 80)}
VOCABULARY = 2000


def cases(size: Size, folder: Path, workers: Workers) -> Iterator[Case]:
    """Cases of the size; each writes the files that the next ones read."""
    form = SIZES[size]
    files = {"one": 1, "all": form.questions}
    for name, count in files.items():
        (folder / name).mkdir()
        drawn = draw_questions(count, items=form.items, words=form.words, vocabulary=VOCABULARY)
        write_questions(folder / name / "questions.json", drawn)
    encoder = str(folder / "encoder")
    workers.of("lamp").call(make_encoder, encoder)
    for stage, words in stages(encoder).items():
        yield Case(
            f"{stage}: {form.questions} x {form.items} x {form.words} words, beside one question",
            Side("lamp", partial(peak_beside, folder, words)),
            unit="MB",
            rounds=0,
        )


def stages(encoder: str) -> dict[str, Sequence[str]]:
    """Commands by the name of the stage; `@` stands for the folder of the files."""
    rank = ["rank", "--task", TASK.name, "--questions", "@questions.json"]
    rankings = ["--rankings", "@bm25.json", "@dense.json"]
    return {
        "rank bm25": [*rank, "--ranker", "bm25", "--output", "@bm25.json"],
        "rank dense": [
            *rank,
            "--ranker",
            "dense",
            "--encoder",
            encoder,
            "--max-length",
            "16",
            "--output",
            "@dense.json",
        ],
        "rank rrf": [*rank, "--ranker", "rrf", *rankings, "--output", "@rrf.json"],
        "merge": ["merge", "--questions", "@questions.json", "--ranking", "@bm25.json", "--output", "@merged.json"],
        "prompts": [
            *("prompts", "--task", TASK.name, "--merged", "@merged.json", "--output", "@prompts.jsonl"),
            *("--tokenizer", encoder),
        ],
    }


def peak_beside(folder: Path, words: Sequence[str]) -> Run:
    """Peak resident memory of a stage in MB, beyond that of the same stage with one question."""

    def run() -> float:
        peaks = [run_lamp([word.replace("@", f"{folder / name}{os.sep}") for word in words]) for name in ("one", "all")]
        return max(0.0, peaks[1] - peaks[0])

    return run


def make_encoder(directory: str) -> None:
    """Writes an encoder of one narrow layer, with a tokenizer of the letters."""
    from flax import nnx

    from lamp_jax.inputs.tokenizer import train_text_tokenizer
    from lamp_jax.models.bert import Bert, BertConfig
    from lamp_jax.models.weights import save_bert

    config = BertConfig(
        vocab_size=128, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    train_text_tokenizer(["abcdefghijklmnopqrstuvwxyz 0123456789"], vocab_size=128).save_pretrained(directory)
    save_bert(Bert(config, rngs=nnx.Rngs(0)), directory)
