"""T5 with and without tied and scaled embeddings: read and written as in transformers."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lamp_jax.config import Lora
from lamp_jax.errors import LampError
from lamp_jax.models.families import (
    abstract_generator,
    fingerprint_generator,
    load_generator,
    read_generator_config,
    save_generator,
)
from lamp_jax.models.lora import adapter_shapes
from tests.models.tiny import GATED, build, make_batch

KINDS = {
    f"{'tied' if tied else 'untied'}, {'scaled' if scaled else 'unscaled'}": (tied, scaled)
    for tied in (True, False)
    for scaled in (True, False)
}
FACTS = {
    "tied, scaled": [-0.007591, -0.329072, -0.050394, 0.284683],
    "tied, unscaled": [-0.030363, -1.316289, -0.201577, 1.138732],
    "untied, scaled": [0.246405, 0.248098, -0.014425, -0.445164],
    "untied, unscaled": [0.985619, 0.992392, -0.057699, -1.780658],
}
"""The first logits of `directory_of`'s models for `make_batch`, computed by transformers 5.23.0 with torch 2.13.0."""


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def directory_of(kind: str, directory, *, version: int = 5):
    """Saves a model with random weights in the files of this version of transformers."""
    tied, scaled = KINDS[kind]
    save_generator(build(GATED), directory)
    random = np.random.default_rng(0)
    tensors = {
        name: (0.5 * random.standard_normal(tensor.shape)).astype(np.float32)
        for name, tensor in sorted(load_file(directory / "model.safetensors").items())
    }
    if tied:
        del tensors["lm_head.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((directory / "config.json").read_text())
    if version == 4:  # which supports only two combinations
        assert tied == scaled
        del values["scale_decoder_outputs"]
        values["tie_word_embeddings"] = tied
    else:
        values |= {"tie_word_embeddings": True, "scale_decoder_outputs": scaled}
    (directory / "config.json").write_text(json.dumps(values))
    return directory


def change_tensors(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def logits_of(model):
    tokens, labels = make_batch()
    return np.asarray(
        jax.jit(lambda model: model.decode(labels, model.encode(tokens), model.source_mask(tokens)))(model)
    )


def tying_of(config):
    return config.tie_word_embeddings, config.scales_outputs


def test_each_combination_written_by_transformers_5_is_read(tmp_path, kind):
    model = load_generator(directory_of(kind, tmp_path))
    assert tying_of(model.config) == tying_of(read_generator_config(tmp_path)) == KINDS[kind]
    assert (model.head is None) == KINDS[kind][0]
    np.testing.assert_allclose(logits_of(model)[0, 0, :4], FACTS[kind], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["tied, scaled", "untied, unscaled"])
def test_both_combinations_written_by_transformers_4_are_read(tmp_path, kind):
    model = load_generator(directory_of(kind, tmp_path, version=4))
    assert tying_of(model.config) == KINDS[kind]
    np.testing.assert_allclose(logits_of(model)[0, 0, :4], FACTS[kind], rtol=1e-4, atol=1e-4)


def test_each_combination_round_trips(tmp_path, kind):
    model = load_generator(directory_of(kind, tmp_path / "one"))
    save_generator(model, tmp_path / "other")
    again = load_generator(tmp_path / "other")
    assert again.config == model.config
    assert ("lm_head.weight" in load_file(tmp_path / "other" / "model.safetensors")) != KINDS[kind][0]
    np.testing.assert_array_equal(logits_of(again), logits_of(model))
    assert fingerprint_generator(tmp_path / "other") == fingerprint_generator(tmp_path / "one")


def test_storage_and_adapters_have_the_same_tying(tmp_path, kind):
    directory = directory_of(kind, tmp_path)
    wide, small = load_generator(directory), load_generator(directory, storage="bfloat16")
    assert tying_of(small.config) == KINDS[kind]
    np.testing.assert_allclose(logits_of(small), logits_of(wide), atol=0.15 * np.abs(logits_of(wide)).max())
    assert adapter_shapes(abstract_generator(read_generator_config(directory)), Lora()) == adapter_shapes(wide, Lora())


def test_a_head_that_equals_the_embedding_is_tied(tmp_path):
    directory = directory_of("tied, unscaled", tmp_path)
    expected = logits_of(load_generator(directory))
    change_tensors(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["shared.weight"].copy()}))
    model = load_generator(directory)
    assert model.head is None
    np.testing.assert_array_equal(logits_of(model), expected)


def test_a_head_that_differs_in_the_last_element_is_not_tied(tmp_path):
    directory = directory_of("tied, unscaled", tmp_path)

    def add_head(tensors):
        tensors["lm_head.weight"] = tensors["shared.weight"].copy()
        tensors["lm_head.weight"][-1, -1] += 1

    change_tensors(directory, add_head)
    assert tying_of(load_generator(directory).config) == (False, False)


@pytest.mark.parametrize("kind", ["tied, scaled", "tied, unscaled"])
def test_a_matrix_stored_only_as_the_head_is_also_the_embedding(tmp_path, kind):
    directory = directory_of(kind, tmp_path)
    before = fingerprint_generator(directory)
    change_tensors(directory, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("shared.weight")}))
    model = load_generator(directory)
    assert tying_of(model.config) == tying_of(read_generator_config(directory)) == KINDS[kind]
    np.testing.assert_allclose(logits_of(model)[0, 0, :4], FACTS[kind], rtol=1e-4, atol=1e-4)
    assert fingerprint_generator(directory) == before


@pytest.mark.parametrize("missing", ["lm_head.weight", "shared.weight"])
def test_an_untied_config_requires_both_matrices(tmp_path, missing):
    directory = directory_of("untied, unscaled", tmp_path, version=4)
    change_tensors(directory, lambda tensors: tensors.pop(missing))
    with pytest.raises(LampError, match=f"missing: {missing}"):
        load_generator(directory)
    with pytest.raises(LampError, match=f"missing: {missing}"):
        fingerprint_generator(directory)


def test_an_embedding_that_differs_from_its_copy_is_an_error(tmp_path):
    directory = directory_of("tied, scaled", tmp_path)

    def add_copy(tensors):
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"][::-1].copy()

    change_tensors(directory, add_copy)
    with pytest.raises(LampError, match=r"encoder\.embed_tokens\.weight should be equal to shared\.weight"):
        load_generator(directory)


def test_equivalent_configurations_are_equal():
    tied = replace(GATED, tie_word_embeddings=True, scale_decoder_outputs=True)
    assert tied == replace(GATED, tie_word_embeddings=True)
    assert replace(tied, scale_decoder_outputs=False) != tied
    assert tying_of(replace(GATED, tie_word_embeddings=True, scale_decoder_outputs=False)) == (True, False)


@pytest.mark.parity
def test_transformers_gives_the_same_logits_before_and_after(tmp_path, kind):
    """A model of transformers is saved by it, loaded and saved by lamp, and loaded by it; it has the logits above."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokens, labels = make_batch()

    def logits_of_theirs(directory):
        model, report = transformers.T5ForConditionalGeneration.from_pretrained(directory, output_loading_info=True)
        assert not any(report.values())
        with torch.no_grad():
            mask = torch.tensor(tokens != 0).long()
            found = model.eval()(
                input_ids=torch.tensor(tokens), attention_mask=mask, decoder_input_ids=torch.tensor(labels)
            )
        return model, found.logits.numpy()

    theirs, expected = logits_of_theirs(directory_of(kind, tmp_path / "made"))
    np.testing.assert_allclose(expected[0, 0, :4], FACTS[kind], rtol=1e-4, atol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_generator(tmp_path / "theirs")
    np.testing.assert_allclose(logits_of(ours), expected, atol=1e-4)
    save_generator(ours, tmp_path / "ours")
    _, again = logits_of_theirs(tmp_path / "ours")
    np.testing.assert_allclose(again, expected, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("tied", [True, False])
def test_a_new_model_of_transformers_is_read(tmp_path, tied):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads")
    values = {name: getattr(GATED, name) for name in names}
    config = transformers.T5Config(**values, feed_forward_proj="gated-gelu", tie_word_embeddings=tied)
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    tokens, labels = make_batch()
    with torch.no_grad():
        mask = torch.tensor(tokens != 0).long()
        expected = theirs(input_ids=torch.tensor(tokens), attention_mask=mask, decoder_input_ids=torch.tensor(labels))
    ours = load_generator(tmp_path)
    assert ours.config.scales_outputs is tied
    np.testing.assert_allclose(logits_of(ours), expected.logits.numpy(), atol=1e-4)
