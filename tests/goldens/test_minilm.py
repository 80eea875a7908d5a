"""Encoder all-MiniLM-L6-v2: the same vectors as PyTorch."""

import jax
import numpy as np
import pytest

from lamp_jax.config import Devices, Encoding
from lamp_jax.encoding import open_encoder
from lamp_jax.retrieval.dense import embed_all
from tests.goldens.minilm import COUNT, GOLDEN, find_directory, make_texts, torch_vectors

DIRECTORY = find_directory()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golden,
    pytest.mark.skipif(DIRECTORY is None, reason="all-MiniLM-L6-v2 is not installed (see tests/goldens/minilm.py)"),
]


@pytest.fixture(scope="module")
def vectors():
    with jax.set_mesh(jax.make_mesh((1, 1), ("data", "model"), devices=jax.devices()[:1])):
        unlike_its_files = Encoding(normalize=False)
        embed = open_encoder(str(DIRECTORY), Devices(), unlike_its_files, max_length=512).documents
        with jax.default_matmul_precision("highest"):
            return embed_all(make_texts(), embed)


def test_vectors_equal_the_golden_vectors_of_pytorch(vectors):
    expected = np.load(GOLDEN)["vectors"]
    assert len(expected) == COUNT
    np.testing.assert_allclose(vectors, expected, atol=1e-4)


def test_vectors_equal_the_installed_pytorch(vectors):
    pytest.importorskip("torch")
    assert DIRECTORY is not None
    some = range(0, COUNT, 10)
    texts = make_texts()
    expected = torch_vectors(DIRECTORY, [texts[place] for place in some])
    np.testing.assert_allclose(vectors[list(some)], expected, atol=1e-4)
