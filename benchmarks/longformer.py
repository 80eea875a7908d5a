"""Memory of a Longformer's forward pass by the length of the text: `python benchmarks/longformer.py`.

Two layers of the base model's width, one text, float32. Each length is measured in a process of its own: the growth of
its peak memory from before the first pass, when the parameters are loaded, to its end, compilation included.
"""

import argparse
import dataclasses
import resource
import subprocess
import sys

import jax
import numpy as np
from flax import nnx

from lamp_jax.models.kernels import AttentionOrder
from lamp_jax.models.longformer import Longformer, LongformerConfig

LENGTHS = (512, 1024, 2048, 4096)
CONFIG = LongformerConfig(vocab_size=1024, num_hidden_layers=2)
FULL = dataclasses.replace(CONFIG, attention_window=2 * CONFIG.max_position_embeddings)
ROWS: dict[str, tuple[LongformerConfig, AttentionOrder]] = {
    "full attention": (FULL, "whole"),
    "window 512, all rows at once": (CONFIG, "whole"),
    "window 512, by rows": (CONFIG, "rows"),
}


def peak() -> int:
    """Peak resident memory of this process, KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(title: str, length: int) -> None:
    config, order = ROWS[title]
    model = Longformer(config, rngs=nnx.Rngs(0), attention=order)
    score = jax.jit(lambda model, tokens: model.score(tokens))
    before = peak()
    score(model, np.full((1, length), 7, np.int32)).block_until_ready()
    print((peak() - before) / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=2, help="title and length of one measurement")
    options = parser.parse_args()
    if options.measure:
        return measure(options.measure[0], int(options.measure[1]))
    print(f"{'GiB at a length of':32}" + "".join(f"{length:>8,}" for length in LENGTHS))
    for title in ROWS:
        found = [
            subprocess.run([sys.executable, __file__, "--measure", title, str(length)], capture_output=True, check=True)
            for length in LENGTHS
        ]
        print(f"{title:32}" + "".join(f"{float(one.stdout):8.2f}" for one in found), flush=True)


if __name__ == "__main__":
    main()
