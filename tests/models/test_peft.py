"""Conversion of adapters from and to peft's directories, without changes."""

import importlib.util
import json
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from lamp_jax.config import Lora
from lamp_jax.errors import LampError
from lamp_jax.models.families import abstract_generator, save_generator
from lamp_jax.models.generator import decoder_inputs
from lamp_jax.models.lora import adapter_shapes, attach
from lamp_jax.models.peft import CONFIG, TORCH, WEIGHTS, read_form, read_peft, tensor_shapes, write_peft
from lamp_jax.models.peft_config import read_peft_form
from tests.models.tiny import GATED, TIED, build, make_batch

CONFIGS = {"tied": TIED, "gated": GATED}
LORAS = {
    "tied": Lora(3, 6.0, ("k", "o", "q", "v", "wi", "wo")),
    "gated": Lora(2, 16.0, ("k", "o", "q", "v", "wi_0", "wi_1", "wo")),
}
QUERY = "base_model.model.encoder.block.1.layer.0.SelfAttention.q.lora_{}.weight"


@pytest.fixture(params=CONFIGS)
def kind(request):
    return request.param


def shapes_of(kind, lora=None):
    return adapter_shapes(abstract_generator(CONFIGS[kind]), lora or LORAS[kind])


def draw(kind):
    rng = np.random.default_rng(0)
    return {name: 0.15 * rng.standard_normal(shape, np.float32) for name, shape in shapes_of(kind).items()}


@pytest.fixture
def directory(tmp_path):
    """A gated T5's adapter."""
    write_peft(tmp_path, draw("gated"), GATED, LORAS["gated"], base="google/flan-t5-base")
    return tmp_path


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_written_adapter_is_read_unchanged(tmp_path, kind):
    adapter, lora = draw(kind), replace(LORAS[kind], dropout=0.0)
    write_peft(tmp_path / "new", adapter, CONFIGS[kind], lora, base="some/base")
    form = read_form(tmp_path / "new", CONFIGS[kind])
    assert (form.rank, form.alpha, form.targets) == (lora.rank, lora.alpha, lora.targets)
    assert_same(read_peft(tmp_path / "new", CONFIGS[kind], shapes_of(kind)), adapter)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [CONFIG, WEIGHTS]


def test_writing_again_replaces_the_old_adapter(directory):
    other = jax.tree.map(lambda values: values + 1, draw("gated"))
    write_peft(directory, other, GATED, LORAS["gated"], base="")
    assert_same(read_peft(directory, GATED, shapes_of("gated")), other)


def test_tensors_have_the_names_and_shapes_of_peft(directory):
    """lora_A [r, in], lora_B [out, r], one pair for each layer."""
    tensors, adapter = load_file(directory / WEIGHTS), draw("gated")
    assert {name: values.shape for name, values in tensors.items()} == tensor_shapes(GATED, shapes_of("gated"))
    np.testing.assert_array_equal(tensors[QUERY.format("A")], adapter["encoder.attention.query.down"][1].T)
    up = adapter["encoder.attention.query.up"][1]
    np.testing.assert_array_equal(tensors[QUERY.format("B")], up.reshape(2, -1).T)
    output = "base_model.model.decoder.block.0.layer.1.EncDecAttention.o.lora_A.weight"
    down = adapter["decoder.cross.output.down"][0]
    np.testing.assert_array_equal(tensors[output], down.reshape(-1, 2).T)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_tensors_of_other_types_are_read(directory, dtype):
    save_file(
        {name: values.astype(dtype) for name, values in load_file(directory / WEIGHTS).items()}, directory / WEIGHTS
    )
    expected = {name: values.astype(dtype).astype(np.float32) for name, values in draw("gated").items()}
    assert_same(read_gated(directory), expected)


def change(directory, **values):
    path = directory / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def change_tensors(directory, work):
    tensors = load_file(directory / WEIGHTS)
    work(tensors)
    save_file(tensors, directory / WEIGHTS)


def read_gated(directory):
    return read_peft(directory, GATED, shapes_of("gated"))


def test_all_mismatches_are_reported_together(directory):
    def spoil(tensors):
        del tensors[QUERY.format("A")]
        tensors[QUERY.format("B")] = np.zeros((31, 2), np.float32)
        tensors["base_model.model.lm_head.lora_A.weight"] = np.zeros((2, 16), np.float32)

    change_tensors(directory, spoil)
    with pytest.raises(LampError) as caught:
        read_gated(directory)
    message = str(caught.value)
    assert f"{directory / WEIGHTS}: does not fit the model (3 mismatches)" in message
    assert f"missing: {QUERY.format('A')}" in message
    assert "unexpected: base_model.model.lm_head.lora_A.weight" in message
    assert f"shape of {QUERY.format('B')}: [31, 2] in the file, [32, 2] by the model" in message


def test_an_adapter_of_another_rank_does_not_fit(directory):
    with pytest.raises(LampError, match=r"\[2, 16\] in the file, \[3, 16\] by the model"):
        read_peft(directory, GATED, shapes_of("gated", replace(LORAS["gated"], rank=3)))


def test_an_adapter_of_another_model_does_not_fit(directory):
    with pytest.raises(LampError, match=r"unexpected: .*wi_0") as caught:
        read_peft(directory, TIED, shapes_of("tied"))
    assert "missing: base_model.model.decoder.block.2" in str(caught.value)


OTHERS = {
    "use_dora": True,
    "lora_bias": True,
    "modules_to_save": ["lm_head"],
    "bias": "all",
    "trainable_token_indices": [3],
}


@pytest.mark.parametrize("option", OTHERS)
def test_other_kinds_of_lora_are_an_error(directory, option):
    change(directory, **{option: OTHERS[option]})
    with pytest.raises(LampError, match=f"{CONFIG}: {option}: only a plain LoRA can be imported"):
        read_form(directory, GATED)


@pytest.mark.parametrize(
    "start", ["pissa", "pissa_niter_16", "corda", "olora", "OLoRA", "loftq", "lora_ga", "unheard-of"]
)
def test_an_adapter_that_was_made_with_another_base_is_an_error(directory, start):
    change(directory, init_lora_weights=start)
    message = rf"{CONFIG}: init_lora_weights '{start}' .* `path_initial_model_for_weight_conversion`"
    with pytest.raises(LampError, match=message):
        read_form(directory, GATED)


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "Gaussian", "orthogonal", "eva", "mica"])
def test_an_initialization_that_keeps_the_base_is_accepted(directory, start):
    change(directory, init_lora_weights=start)
    assert read_form(directory, GATED).rank == LORAS["gated"].rank


def test_other_kinds_of_adapters_are_an_error(directory):
    change(directory, peft_type="IA3")
    with pytest.raises(LampError, match="peft_type 'IA3'; only LORA can be imported"):
        read_form(directory, GATED)


# Where peft 0.21.2 is installed, a test below compares these with its choice of a gated T5's modules.
CHOICES = {
    "regex": {"target_modules": r".*\.(q|v)"},
    "regex-decoder": {"target_modules": r"decoder\..*EncDecAttention\.(q|k)"},
    "regex-is-complete": {"target_modules": r".*DenseReluDense\.wi_0|.*Attention\.q"},
    "all-linear": {"target_modules": "all-linear"},
    "All-Linear": {"target_modules": "All-Linear"},
    "suffixes": {"target_modules": ["q", "SelfAttention.v", "decoder.block.1.layer.2.DenseReluDense.wo"]},
    "one-is-nowhere": {"target_modules": ["q", "query_key_value"]},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["wo", "SelfAttention.k"]},
    "excluded-by-regex": {"target_modules": ["q", "v"], "exclude_modules": r"encoder\..*"},
    "layer": {"target_modules": ["q", "v"], "layers_to_transform": 1},
    "layers": {"target_modules": ["q", "wi_0"], "layers_to_transform": [0], "layers_pattern": "block"},
    "layers-inside": {"target_modules": ["q", "wi_0"], "layers_to_transform": [1], "layers_pattern": ["layer"]},
    "ranks": {"target_modules": ["q", "v"], "rank_pattern": {"decoder.*q": 4, "v": 1}},
    "alphas": {"target_modules": ["q", "v"], "alpha_pattern": {r"encoder\.block\.0\..*": 3, "v": 24}},
    "rslora": {"target_modules": ["q", "v"], "use_rslora": True},
    "all-together": {
        "target_modules": "all-linear",
        "exclude_modules": ["wi_1"],
        "rank_pattern": {"q": 3, "wo": 5},
        "alpha_pattern": {"EncDecAttention.q": 7},
        "use_rslora": True,
    },
}


@pytest.mark.parametrize(
    ("choice", "count", "targets"),
    [
        ("regex", 12, ("q", "v")),
        ("regex-decoder", 4, ("k", "q")),
        ("regex-is-complete", 10, ("q", "wi_0")),
        ("all-linear", 36, ("k", "o", "q", "v", "wi_0", "wi_1", "wo")),
        ("suffixes", 11, ("q", "v", "wo")),
        ("layer", 6, ("q", "v")),
    ],
)
def test_modules_are_chosen_by_names_and_patterns(directory, choice, count, targets):
    """The model has two layers with 1 + 2 attentions of four projections and 1 + 1 perceptrons of three."""
    assert (GATED.num_layers, GATED.num_decoder_layers) == (2, 2)
    change(directory, **CHOICES[choice])
    lora, additions = read_peft_form(directory, GATED)
    assert (len(additions), lora.targets) == (count, targets)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_modules": ".*"}, "target_modules includes shared, .*lm_head.*; only the projections of its layers"),
        ({"target_modules": ["q", "lm_head"]}, "target_modules includes lm_head;"),
        (
            {"target_modules": ["query"]},
            r"target_modules \['query'\] matches no projection of this model; choose from k, o, q",
        ),
        ({"target_modules": "q"}, "target_modules 'q' matches no projection"),  # a regular expression for peft too
        ({"target_modules": "(q"}, r"'\(q' is no regular expression"),
        ({"target_modules": ["q"], "rank_pattern": {"(q": 2}}, ".* is no regular expression"),
        ({"target_modules": ["q"], "rank_pattern": {"q": "2"}}, "not a complete configuration .*q '2'"),
        ({"target_modules": ["q"], "rank_pattern": [2]}, "not a complete configuration .*rank_pattern"),
        ({"target_modules": ["q"], "layers_to_transform": ["1"]}, "not a complete configuration .*layers_to_transform"),
        ({"target_modules": r".*\.q", "layers_to_transform": [1]}, "layers_to_transform needs a list"),
        ({"target_modules": None}, "not a complete configuration .*target_modules None"),
        ({"target_modules": {"q": 1}}, "not a complete configuration .*target_modules"),
        ({"exclude_modules": [1]}, "not a complete configuration .*exclude_modules"),
        ({"r": 0}, "not a complete configuration .*r 0"),
        ({"r": True}, "not a complete configuration .*r True"),
        ({"r": None}, "not a complete configuration .*r None"),
        ({"lora_alpha": float("nan")}, "not a complete configuration .*lora_alpha nan"),
        ({"lora_dropout": "0.1"}, "not a complete configuration .*lora_dropout '0.1'"),
    ],
)
def test_an_unsupported_configuration_is_a_named_error(directory, values, message):
    change(directory, **values)
    with pytest.raises(LampError, match=f"{CONFIG}: {message}") as caught:
        read_form(directory, GATED)
    assert str(directory) in str(caught.value)


def draw_adapter_of_peft(torch, model):
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "lora_" in name:
                values.copy_(0.15 * torch.randn(values.shape, generator=random))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft calls transformers in this way
@pytest.mark.parametrize("choice", CHOICES)
def test_modules_are_those_chosen_by_peft(tmp_path, choice):
    """The same modules as peft, and the same logits, whether the file has peft's resolved names or the user's."""
    torch, peft, base = open_theirs(tmp_path, "gated")
    before = logits_of_peft(torch, base)
    settings = {"r": 2, "lora_alpha": 12, "lora_dropout": 0.25} | CHOICES[choice]
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_2_SEQ_LM", **settings))
    draw_adapter_of_peft(torch, model)
    model.save_pretrained(tmp_path / "theirs")
    modules = {name.removeprefix("base_model.model.") for name, one in model.named_modules() if hasattr(one, "lora_A")}
    expected = logits_of_peft(torch, model)
    assert np.abs(expected - before).max() > 0.03
    read = []
    for rewritten in ({}, CHOICES[choice]):
        change(tmp_path / "theirs", **rewritten)
        form, additions = read_peft_form(tmp_path / "theirs", GATED)
        assert set(additions) == modules
        read.append((form, read_peft(tmp_path / "theirs", GATED, shapes_of("gated", form))))
    (form, adapter), (again, same) = read
    assert form == again
    assert_same(same, adapter)
    np.testing.assert_allclose(logits_of("gated", adapter, form), expected, atol=1e-4)


def test_a_pytorch_file_is_read_if_torch_is_installed(directory):
    torch = pytest.importorskip("torch")
    adapter = read_gated(directory)
    tensors = {name: torch.tensor(values) for name, values in load_file(directory / WEIGHTS).items()}
    torch.save(tensors, directory / TORCH)
    (directory / WEIGHTS).unlink()
    assert_same(read_gated(directory), adapter)
    torch.save({name: values.bfloat16() for name, values in tensors.items()}, directory / TORCH)
    rounded = read_gated(directory)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2**-7), rounded, adapter)
    torch.save([1, 2], directory / TORCH)
    with pytest.raises(LampError, match=f"{TORCH}: contains something other than named tensors"):
        read_gated(directory)


@pytest.mark.parametrize(
    "content", [b"", b"text", b"version https://git-lfs.github.com/spec/v1\noid", b"PK\x03\x04cut"]
)
def test_a_damaged_pytorch_file_is_a_named_error(directory, content):
    pytest.importorskip("torch")
    (directory / WEIGHTS).unlink()
    (directory / TORCH).write_bytes(content)
    with pytest.raises(LampError, match=f"{TORCH}: (not a complete PyTorch file|a git-lfs pointer)") as caught:
        read_gated(directory)
    assert ("git lfs pull" in str(caught.value)) == content.startswith(b"version")


def test_a_pytorch_file_without_torch_is_a_named_error(directory, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (directory / WEIGHTS).rename(directory / TORCH)
    with pytest.raises(LampError, match=f"{TORCH}: a PyTorch file, .*install torch"):
        read_gated(directory)


def test_a_pointer_of_git_lfs_is_named(directory):
    (directory / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n")
    with pytest.raises(LampError, match=f"{WEIGHTS}: .*git lfs pull"):
        read_gated(directory)


def test_integer_weights_are_an_error(directory):
    def spoil(tensors):
        tensors[QUERY.format("B")] = tensors[QUERY.format("B")].astype(np.int8)

    change_tensors(directory, spoil)
    with pytest.raises(LampError, match=f"{QUERY.format('B')} has the type int8"):
        read_gated(directory)


def test_numbers_that_are_not_finite_are_named(directory):
    def spoil(tensors):
        tensors[QUERY.format("B")] = tensors[QUERY.format("B")] * np.float32("nan")

    change_tensors(directory, spoil)
    with pytest.raises(LampError, match=rf"{WEIGHTS}: .*SelfAttention\.q\.lora_B\.weight has values that are not"):
        read_gated(directory)


def read_both(directory):
    return read_form(directory, GATED), read_gated(directory)


def remove_weights(directory):
    (directory / WEIGHTS).unlink()


def cut_weights(directory):
    content = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(content[: len(content) // 2])


def remove_config(directory):
    (directory / CONFIG).unlink()


def cut_config(directory):
    (directory / CONFIG).write_text('{"peft_type": "LORA", ', encoding="utf-8")


def leave_out(name):
    def work(directory):
        path = directory / CONFIG
        values = json.loads(path.read_text(encoding="utf-8"))
        del values[name]
        path.write_text(json.dumps(values), encoding="utf-8")

    work.__name__ = f"leave_out_{name}"
    return work


def name_no_rank(directory):
    change(directory, r="many")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_weights, f"{WEIGHTS}: no such file; save the adapter with peft's save_pretrained"),
        (cut_weights, f"{WEIGHTS}: not a complete safetensors file .*copy it again"),
        (remove_config, f"has no {CONFIG}"),
        (cut_config, f"{CONFIG}: invalid JSON"),
        (leave_out("r"), f"{CONFIG}: not a complete configuration"),
        (leave_out("target_modules"), f"{CONFIG}: not a complete configuration"),
        (name_no_rank, f"{CONFIG}: not a complete configuration"),
    ],
)
def test_a_directory_without_an_adapter_is_a_named_error(directory, spoil, message):
    spoil(directory)
    with pytest.raises(LampError, match=message) as caught:
        read_both(directory)
    assert str(directory) in str(caught.value)


def test_a_missing_directory_is_a_named_error(tmp_path):
    with pytest.raises(LampError, match=f"has no {CONFIG}"):
        read_form(tmp_path / "missing", GATED)


def logits_of(kind, adapter, lora):
    """The model's logits with the same adapter for all rows."""
    tokens, labels = make_batch()
    graph, params = nnx.split(build(CONFIGS[kind]))

    @jax.jit
    def run(params, rows):
        model = attach(nnx.merge(graph, params), rows, lora)
        return model.decode(decoder_inputs(labels, model.config), model.encode(tokens), model.source_mask(tokens))

    return np.asarray(run(params, {name: np.stack([values] * len(tokens)) for name, values in adapter.items()}))


def logits_of_peft(torch, model):
    tokens, labels = make_batch()
    mask, target = torch.tensor(tokens != 0).long(), torch.tensor(np.asarray(decoder_inputs(labels, TIED)))
    with torch.no_grad():
        return model.eval()(
            input_ids=torch.tensor(tokens), attention_mask=mask, decoder_input_ids=target
        ).logits.numpy()


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft calls transformers in this way
def test_an_adapter_of_peft_gives_the_same_logits_here(tmp_path, kind):
    torch, peft, base = open_theirs(tmp_path, kind)
    lora = LORAS[kind]
    config = peft.LoraConfig(
        task_type="SEQ_2_SEQ_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets),
        lora_dropout=0.25,
    )
    before = logits_of_peft(torch, base)
    model = peft.get_peft_model(base, config)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "lora_" in name:
                values.copy_(0.15 * torch.randn(values.shape, generator=random))
    model.save_pretrained(tmp_path / "theirs")
    form = read_form(tmp_path / "theirs", CONFIGS[kind])
    assert (form.rank, form.alpha, sorted(form.targets)) == (lora.rank, lora.alpha, sorted(lora.targets))
    adapter = read_peft(tmp_path / "theirs", CONFIGS[kind], shapes_of(kind, form))
    expected = logits_of_peft(torch, model)
    assert np.abs(expected - before).max() > 0.1
    np.testing.assert_allclose(logits_of(kind, adapter, form), expected, atol=1e-4)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft calls transformers in this way
@pytest.mark.filterwarnings("ignore:.*changes the base weights of the model:UserWarning")
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_that_changes_the_base_gives_the_same_logits_once_peft_has_converted_it(tmp_path, kind, start):
    torch, peft, base = open_theirs(tmp_path, kind)
    targets = list(LORAS[kind].targets)
    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=targets, init_lora_weights=start)
    model = peft.get_peft_model(base, config)
    model.peft_config["default"].init_lora_weights = True  # as peft's documentation recommends
    model.save_pretrained(tmp_path / "before")
    model.peft_config["default"].init_lora_weights = start
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "lora_" in name:
                values.add_(0.1 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0)))
    model.save_pretrained(tmp_path / "plain")
    with pytest.raises(LampError, match=f"init_lora_weights '{start}'"):
        read_form(tmp_path / "plain", CONFIGS[kind])
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "before"))
    form = read_form(tmp_path / "converted", CONFIGS[kind])
    adapter = read_peft(tmp_path / "converted", CONFIGS[kind], shapes_of(kind, form))
    np.testing.assert_allclose(logits_of(kind, adapter, form), logits_of_peft(torch, model), atol=1e-4)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft calls transformers in this way
def test_our_adapter_gives_the_same_logits_in_peft(tmp_path, kind):
    torch, peft, base = open_theirs(tmp_path, kind)
    adapter, before = draw(kind), logits_of_peft(torch, base)
    write_peft(tmp_path / "ours", adapter, CONFIGS[kind], LORAS[kind], base=str(tmp_path))
    found = logits_of_peft(torch, peft.PeftModel.from_pretrained(base, tmp_path / "ours"))
    assert np.abs(found - before).max() > 0.1
    np.testing.assert_allclose(found, logits_of(kind, adapter, LORAS[kind]), atol=1e-4)


def open_theirs(directory, kind):
    """torch, peft, and transformers' model with our weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    save_generator(build(CONFIGS[kind]), directory)
    return torch, peft, transformers.T5ForConditionalGeneration.from_pretrained(directory)
