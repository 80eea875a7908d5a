"""Speedup of dense ranking against PyTorch, question by question: `python benchmarks/dense.py`.

An encoder of all-MiniLM-L6's size with random weights; texts of 5 to 400 words. The peer works as the public code does:
each question's documents in batches of 16, padded to the longest, by `transformers` on torch. Both use the same model
directory; compilation is excluded, and its time is printed. Runs are interleaved, because the machine may be shared;
medians are printed, and the ratios of runs of the same round. Torch has one thread or all cores, whichever is faster in
a first run, because several threads can be slower than one.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # otherwise torch's idle threads occupy the cores

import jax
import numpy as np
import torch
from flax import nnx
from transformers import AutoModel, AutoTokenizer

from lamp_jax.config import Devices
from lamp_jax.data.files import Question
from lamp_jax.encoding import open_encoder
from lamp_jax.inputs.tokenizer import train_text_tokenizer
from lamp_jax.models.bert import Bert, BertConfig
from lamp_jax.models.weights import save_bert
from lamp_jax.retrieval.dense import rank_dense
from lamp_jax.runs.workers import available_cores
from lamp_jax.sharding import open_mesh
from lamp_jax.tasks.catalog import find_task

TASK = find_task("LaMP-3")
SIZE = BertConfig(vocab_size=4096, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def make_questions(profiles: int, *, items: int, per_profile: int) -> list[Question]:
    """Questions, `per_profile` on each profile; profiles have texts of 5 to 400 words, equal for any `per_profile`."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(LETTERS, rng.integers(2, 9))) for _ in range(2000)]

    def text(length: int) -> str:
        return " ".join(rng.choice(words, length))

    texts = [[text(length) for length in rng.integers(5, 401, items)] for _ in range(profiles)]
    return [
        Question(
            f"{number}-{turn}",
            TASK.input_for(text(60)),
            tuple({"id": str(place), "text": one, "score": "3"} for place, one in enumerate(profile)),
        )
        for number, profile in enumerate(texts)
        for turn in range(per_profile)
    ]


def make_model(directory: Path, questions: list[Question]) -> None:
    texts = [str(item["text"]) for question in questions for item in question.profile]
    train_text_tokenizer(texts, vocab_size=SIZE.vocab_size).save_pretrained(directory)
    save_bert(Bert(SIZE, rngs=nnx.Rngs(0)), directory)


def one_by_one(directory: Path) -> Callable[[list[Question], int], None]:
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModel.from_pretrained(directory).eval()

    def embed(texts: list[str]) -> torch.Tensor:
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        hidden = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).last_hidden_state
        mask = encoded["attention_mask"][..., None]
        return (hidden * mask).sum(1) / mask.sum(1)

    def run(questions: list[Question], threads: int) -> None:
        torch.set_num_threads(threads)
        with torch.no_grad():
            for question in questions:
                query = embed([TASK.query(question.input)])
                texts = [TASK.document_of(item) for item in question.profile]
                batches = [embed(texts[start : start + 16]) for start in range(0, len(texts), 16)]
                (torch.cat(batches) @ query[0]).argsort(descending=True).tolist()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profiles", type=int, default=40)
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--batch-tokens", type=int, help="`--batch-tokens` of `lamp rank`")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for per_profile in (1, 2):
        questions = make_questions(options.profiles, items=options.items, per_profile=per_profile)
        with tempfile.TemporaryDirectory() as name, jax.set_mesh(open_mesh(Devices(cpu_devices=0))):
            make_model(Path(name), questions)
            embed = open_encoder(
                name, Devices(cpu_devices=0), max_length=512, batch_tokens=options.batch_tokens
            ).documents
            theirs = one_by_one(Path(name))

            def ours() -> None:
                list(rank_dense(questions, TASK, embed))  # noqa: B023 (run before the next round)

            first = seconds(ours)
            threads = min((1, available_cores()), key=lambda n: seconds(lambda: theirs(questions[:4], n)))  # noqa: B023
            times = [
                (seconds(ours), seconds(lambda: theirs(questions, threads)))  # noqa: B023
                for _ in range(options.repeats)
            ]
        mine, other = (statistics.median(column) for column in zip(*times, strict=True))
        ratios = sorted(other / mine for mine, other in times)
        print(
            f"{per_profile} questions per profile: {mine:.1f} s, question by question {other:.1f} s "
            f"({threads} threads), speedup {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); "
            f"the first run, which compiles, took {first:.1f} s"
        )


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
