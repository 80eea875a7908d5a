"""transformers on torch, as a peer: models, batches and beam search. Imported in the peers' processes only."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lamp_jax.bench.cases import Dtype
from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import Example, pad_rows
from lamp_jax.runs.workers import available_cores

END = 1  # token; padding is 0
IGNORED = -100  # label of tokens that are not predicted


def start_torch(*, cuda: bool) -> Any:
    """Module torch with the number of threads of all sides. LampError where `cuda` is not to be had."""
    import torch

    torch.set_num_threads(available_cores())
    if cuda and not torch.cuda.is_available():
        raise LampError("this torch has no CUDA device; install a build of torch for this machine's driver")
    return torch


def load_peer(directory: str, *, dtype: Dtype = "float32", cuda: bool = False) -> Any:
    """transformers' model of a generator's directory, in evaluation mode."""
    torch = start_torch(cuda=cuda)
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    return model.to("cuda" if cuda else "cpu").eval()


def padded(rows: Sequence[Sequence[int]], device: Any, *, pad: int = 0, multiple: int = 1) -> Any:
    """Tensor [B, S] of token rows, padded to the longest, or to the next multiple."""
    import torch

    longest = -(-max(map(len, rows)) // multiple) * multiple
    return torch.tensor(pad_rows(rows, len(rows), longest, pad=pad).astype(np.int64), device=device)


def labelled(examples: Sequence[Example], device: Any, *, multiple: int = 1) -> dict[str, Any]:
    """Arguments of a model that returns its loss on prompts and answers."""
    sides = ([one.source for one in examples], [one.target for one in examples])
    source, target = (padded(rows, device, multiple=multiple) for rows in sides)
    labels = target.masked_fill(target == 0, IGNORED)
    return {"input_ids": source, "attention_mask": source != 0, "labels": labels, "use_cache": False}


def answer_tokens(found: Any) -> list[list[int]]:
    """Token ids of generated answers [B, T], without start, end and padding."""
    return [[token for token in row[1:] if token > END] for row in found.tolist()]


def finish(model: Any) -> None:
    """Waits for the device."""
    import torch

    if model.device.type == "cuda":
        torch.cuda.synchronize()
