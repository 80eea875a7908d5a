"""Adapters of Hugging Face's peft: the same logits, losses and gradient norms as in peft."""

import functools
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from lamp_jax.losses import token_cross_entropy
from lamp_jax.models.families import abstract_generator, load_generator, read_generator_config
from lamp_jax.models.generator import decoder_inputs
from lamp_jax.models.lora import adapter_shapes, attach
from lamp_jax.models.peft import CONFIG, WEIGHTS, read_form, read_peft, write_peft
from tests.goldens.cases import CASES

pytestmark = pytest.mark.golden

FOLDER = CASES / "goldens" / "peft"
ADAPTERS = sorted(path.parent.name for path in FOLDER.glob(f"*/{CONFIG}"))


@pytest.fixture(params=ADAPTERS, ids="peft-{}".format)
def name(request):
    return request.param


def find_base(name):
    config = json.loads((FOLDER / name / CONFIG).read_text(encoding="utf-8"))
    return CASES / config["base_model_name_or_path"]


def read_adapter(name):
    """The adapter's form and arrays."""
    config = read_generator_config(find_base(name))
    form = read_form(FOLDER / name, config)
    return form, read_peft(FOLDER / name, config, adapter_shapes(abstract_generator(config), form))


def read_numbers(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def read_forward(name):
    with np.load(FOLDER / f"{name}_forward.npz") as arrays:
        return {key: arrays[key].astype(np.int32) if arrays[key].dtype.kind == "i" else arrays[key] for key in arrays}


@functools.cache
def forward(name):
    """The batch's logits and mean loss, and the loss's gradient of the adapter."""
    golden, (form, adapter) = read_forward(name), read_adapter(name)
    graph, params = nnx.split(load_generator(find_base(name)))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def differentiate(adapter, params):
        rows = {key: jax.numpy.stack([values] * len(golden["labels"])) for key, values in adapter.items()}
        model, mask = attach(nnx.merge(graph, params), rows, form), golden["attention_mask"].astype(bool)
        encoded = model.encode(golden["input_ids"], mask=mask)
        logits = model.decode(decoder_inputs(golden["labels"], model.config), encoded, mask)
        total, count = token_cross_entropy(logits, golden["labels"], pad=0)
        return total / count, (logits, total / count)

    with jax.default_matmul_precision("highest"):
        gradient, (logits, loss) = jax.device_get(differentiate(adapter, params))
    return logits, loss, gradient


def test_logits_equal_peft(name):
    np.testing.assert_allclose(forward(name)[0], read_forward(name)["logits"], atol=1e-4)


def test_loss_equals_peft(name):
    np.testing.assert_allclose(forward(name)[1], read_forward(name)["loss"], atol=1e-4)


def test_gradient_norms_equal_peft(name, tmp_path):
    (form, _), gradient = read_adapter(name), forward(name)[2]
    write_peft(tmp_path, gradient, read_generator_config(find_base(name)), form, base="")
    # In memory peft's parameter names contain the adapter's name, which its files omit.
    norms = {
        key.replace(".weight", ".default.weight"): np.linalg.norm(values)
        for key, values in load_file(tmp_path / WEIGHTS).items()
    }
    expected = read_numbers(name)["grad_norms"]
    assert norms.keys() == expected.keys()
    for key, norm in expected.items():
        np.testing.assert_allclose(norms[key], norm, rtol=1e-3, err_msg=key)


def test_the_number_of_trainable_values_equals_peft(name):
    _, adapter = read_adapter(name)
    assert sum(values.size for values in adapter.values()) == read_numbers(name)["trainable"]


def test_adapters_of_peft_are_rewritten_unchanged(name, tmp_path):
    form, adapter = read_adapter(name)
    write_peft(tmp_path, adapter, read_generator_config(find_base(name)), form, base="tiny")
    found, expected = load_file(tmp_path / WEIGHTS), load_file(FOLDER / name / WEIGHTS)
    assert found.keys() == expected.keys()
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert read_form(tmp_path, read_generator_config(find_base(name))) == replace(
        form, targets=tuple(sorted(form.targets))
    )
