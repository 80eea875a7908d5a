"""Speedup of answering question-item pairs against PyTorch, one prompt at a time: `python benchmarks/feedback.py`.

A T5 of T5-small's size with random weights; prompts of 256 tokens, answers of exactly 32 (start token included), 4
beams. The peer is `transformers`' generate on torch, one prompt at a time, as in the public item scorer. Both read the
same model directory; compilation is excluded, and its time is printed. Runs are interleaved; torch has one thread or
all cores, and its fastest prompt counts, because several threads can be slower than one.
"""

import argparse
import os
import statistics
import tempfile
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # otherwise torch's idle threads occupy the cores

import jax
import numpy as np
import torch
from flax import nnx
from transformers import T5ForConditionalGeneration

from lamp_jax.config import Devices
from lamp_jax.decoding.beam import beam_search
from lamp_jax.models.families import load_generator, save_generator
from lamp_jax.models.t5 import T5
from lamp_jax.models.t5_config import T5_SMALL
from lamp_jax.runs.workers import available_cores
from lamp_jax.sharding import make_mesh, model_options, place_batch

SOURCE, NEW, BEAMS = 256, 31, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--one-by-one", type=int, default=3, help="prompts that the peer answers in a run")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, 32000, (options.batch_size, SOURCE)).astype(np.int32)
    with tempfile.TemporaryDirectory() as name, jax.set_mesh(make_mesh()):
        save_generator(T5(T5_SMALL, rngs=nnx.Rngs(0)), name)
        graph, params = nnx.split(load_generator(name, **model_options(Devices())))
        search = jax.jit(
            lambda params, source: (
                beam_search(nnx.merge(graph, params), source, num_beams=BEAMS, max_new_tokens=NEW).tokens
            )
        )
        theirs: Any = T5ForConditionalGeneration.from_pretrained(name).eval()

        def ours() -> float:
            start = time.perf_counter()
            found = np.asarray(search(params, place_batch(prompts)))
            assert not (found == T5_SMALL.eos_token_id).any(), "an answer ended early: lengths are not equal"
            return (time.perf_counter() - start) / len(prompts)

        def one_by_one() -> float:
            times = []
            for threads in (1, available_cores()):
                torch.set_num_threads(threads)
                for row in prompts[: options.one_by_one]:
                    start = time.perf_counter()
                    source = torch.tensor(row[None].astype(np.int64))
                    found = theirs.generate(source, num_beams=BEAMS, min_new_tokens=NEW, max_new_tokens=NEW)
                    assert found.shape[1] == NEW + 1
                    times.append(time.perf_counter() - start)
            return min(times)

        first = ours() * len(prompts)
        times = [(ours(), one_by_one()) for _ in range(options.repeats)]
    mine, other = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    print(
        f"{1 / mine:.2f} pairs per second in batches of {len(prompts)}, {1 / other:.2f} one by one, speedup "
        f"{ratio:.2f} (the first batch, which compiles: {first:.1f} s)"
    )


if __name__ == "__main__":
    main()
