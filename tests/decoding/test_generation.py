"""Generation settings of a model's files: the same tokens as `generate` of transformers.

The answers of transformers are in `tests/cases/goldens/generation.json`. Where torch is installed,
`python -m tests.decoding.test_generation` writes them.
"""

import contextlib
import functools
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from lamp_jax.config import Answering
from lamp_jax.decoding.answers import make_decoder
from lamp_jax.decoding.generation import (
    DEFAULT_GENERATION,
    GENERATION_CONFIG,
    Generation,
    keep_generation,
    open_generation,
    read_generation,
)
from lamp_jax.errors import LampError
from lamp_jax.models.families import load_generator, save_generator
from lamp_jax.models.t5 import T5
from lamp_jax.sharding import FSDP_AND_TENSOR_PARALLEL, make_mesh, place_batch
from tests.goldens.cases import CASES as FOLDER
from tests.models.tiny import GATED, build, make_batch, place_values

GOLDENS = FOLDER / "goldens" / "generation.json"
LENGTH = 10
SOURCES, _ = make_batch(rows=6)

ASKED = {
    "nothing": {},
    "min_length": {"min_length": 6},
    "min_new_tokens": {"min_new_tokens": 6, "min_length": 9},
    "no_repeat_ngram_size 1": {"no_repeat_ngram_size": 1},
    "no_repeat_ngram_size 2": {"no_repeat_ngram_size": 2},
    "no_repeat_ngram_size 3": {"no_repeat_ngram_size": 3, "min_length": 10},
    "encoder_no_repeat_ngram_size 1": {"encoder_no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size 2": {"encoder_no_repeat_ngram_size": 2},
    "length_penalty 0": {"length_penalty": 0.0},
    "length_penalty -1": {"length_penalty": -1.0},
    "length_penalty 2.5": {"length_penalty": 2.5},
    "early_stopping": {"early_stopping": True},
    "early_stopping never": {"early_stopping": "never"},
    "early_stopping never, short": {"early_stopping": "never", "length_penalty": -0.5},
    "early_stopping, long": {"early_stopping": True, "length_penalty": 2.0},
    "forced_bos_token_id": {"forced_bos_token_id": 7},
    "forced_eos_token_id": {"forced_eos_token_id": 1, "min_length": 10},
    "forced_eos_token_id of two": {"forced_eos_token_id": [1, 5], "suppress_tokens": [5], "min_length": 10},
    "bad_words_ids": {"bad_words_ids": [[9], [1], [4, 4], [0, 11], [11, 6, 7], [5] * 20]},
    "sequence_bias": {"sequence_bias": [[[9], 2.0], [[4, 4], -6.0], [[11, 22], 5.0], [[1], -1.0]]},
    "suppress_tokens": {"suppress_tokens": [4, 9, 42]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [11, 19, 1]},
    "begin_suppress_tokens, forced": {"begin_suppress_tokens": [11, 29, 9, 1], "forced_bos_token_id": 7},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "repetition_penalty below 1": {"repetition_penalty": 0.8},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.6},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [2, 1.4], "min_length": 5},
    "renormalize_logits": {"renormalize_logits": True, "repetition_penalty": 2.0},
    "remove_invalid_values": {"remove_invalid_values": True, "bad_words_ids": [[11]]},
    "max_new_tokens": {"max_new_tokens": 4},
    "several ends": {"eos_token_id": [1, 21, 42]},
    "another start": {"decoder_start_token_id": 5},
}


def draw_several(seed):
    """Values of several names at once."""
    found = {}
    kept = [values for name, values in ASKED.items() if name not in ("max_new_tokens", "early_stopping never")]
    for values in random.Random(seed).sample(kept, 5):
        found |= values
    return found


# The first source begins with two tokens that an answer would repeat.
MET = [int(token) for token in SOURCES[0, :2]]
FURTHER = {
    "a pair of the source": {
        "encoder_no_repeat_ngram_size": 2,
        "forced_bos_token_id": MET[0],
        "sequence_bias": [[MET, 20.0]],
    }
}
SEVERAL = {f"several {seed}": draw_several(seed) for seed in range(6)}
# Greedy search applies the processors to logits, beam search to log-probabilities: factors have other effects there.
GREEDY = ["repetition_penalty", "encoder_repetition_penalty", "exponential_decay_length_penalty", *list(SEVERAL)[:3]]
CASES = {
    f"{name}, {beams} beams": (values, beams)
    for name, values in (ASKED | FURTHER | SEVERAL).items()
    for beams in (1, 3)
}
RUN = [name for name in CASES if name.endswith("3 beams") or name.removesuffix(", 1 beams") in GREEDY]


def save_model(directory):
    """A small T5 with a sharper distribution than a random T5: its answers end, and contain repetitions."""
    draw = np.random.default_rng(1)

    def drawn(path, leaf):
        values = leaf.mean() + leaf.std() * draw.standard_normal(leaf.shape)
        if path == ("head",):
            values *= np.where(np.arange(GATED.vocab_size) == 1, 8, 3)[:, None]
        return leaf.replace(values.astype(np.float32))

    flat = {path: drawn(path, leaf) for path, leaf in nnx.to_flat_state(nnx.state(build(GATED)))}
    model = place_values(jax.eval_shape(lambda: T5(GATED, rngs=nnx.Rngs(0))), nnx.from_flat_state(flat))
    save_generator(model, directory)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "model"
    save_model(directory)
    return directory


def with_settings(model, directory, values, *, file=GENERATION_CONFIG):
    """Copy of a model whose generation_config.json has these settings."""
    shutil.copytree(model, directory, dirs_exist_ok=True)
    path = directory / file
    old = json.loads(path.read_text()) if path.exists() else {}
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    path.write_text(json.dumps(old | special | values))
    return directory


def beam_answering(num_beams=3, **options):
    return Answering("beam", num_beams, LENGTH + 1, **options)


def decode(directory, beam_answering, sources=SOURCES):
    """The tokens of each answer, including the end token."""
    graph, params = nnx.split(load_generator(directory))
    generation = read_generation(directory, beam_answering)
    with jax.default_matmul_precision("highest"):
        tokens = make_decoder(graph, beam_answering, None, generation=generation)(params, sources)
    return [[token for token in row if token >= 0] for row in np.asarray(tokens).tolist()]


def transformers_decode(directory, num_beams):
    import torch
    from transformers import T5ForConditionalGeneration

    model: Any = T5ForConditionalGeneration.from_pretrained(directory).eval()
    ends = np.atleast_1d(model.generation_config.eos_token_id).tolist()
    found = []
    # One source after another: padding of a batch would count as a token of the source.
    for source in SOURCES:
        ids = torch.tensor(source[source != 0])[None].long()
        row = model.generate(ids, num_beams=num_beams, max_length=LENGTH + 1)[0, 1:].tolist()
        end = next((place for place, token in enumerate(row) if token in ends), len(row))
        found.append(row[: end + 1])
    return found


@functools.cache
def read_goldens():
    return json.loads(GOLDENS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", RUN)
def test_answers_are_those_of_transformers(name, model, tmp_path):
    values, num_beams = CASES[name]
    assert decode(with_settings(model, tmp_path, values), beam_answering(num_beams)) == read_goldens()[name]


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_goldens_are_those_of_the_installed_transformers(name, model, tmp_path):
    pytest.importorskip("torch")
    values, num_beams = CASES[name]
    assert transformers_decode(with_settings(model, tmp_path, values), num_beams) == read_goldens()[name]


def test_goldens_with_settings_differ_from_those_without():
    """Otherwise a search that ignores settings would pass. The exceptions have an effect only together with others."""
    ordinary = {beams: read_goldens()[f"nothing, {beams} beams"] for beams in (1, 3)}
    same = [name for name in RUN if read_goldens()[name] == ordinary[CASES[name][1]]]
    assert {name.rpartition(",")[0] for name in same} <= {
        "nothing",
        "early_stopping",
        "early_stopping never",
        "encoder_no_repeat_ngram_size 2",
    }


def test_every_supported_setting_is_tested():
    asked = {name for values in ASKED.values() for name in values}
    assert asked - {"min_length"} == {name for name in vars(DEFAULT_GENERATION) if name not in ("source", "ignored")}


def test_settings_are_read_from_config_json_where_there_is_no_other_file(model, tmp_path):
    values = SEVERAL["several 0"]
    directory = with_settings(model, tmp_path, values, file="config.json")
    assert read_generation(directory, beam_answering()).applied
    assert decode(directory, beam_answering()) == read_goldens()["several 0, 3 beams"]


def test_generation_config_json_overrides_config_json(model, tmp_path):
    with_settings(model, tmp_path, {"no_repeat_ngram_size": 2}, file="config.json")
    directory = with_settings(model, tmp_path, {"min_length": 6})
    assert read_generation(directory, beam_answering()) == Generation(min_new_tokens=5)


def test_the_option_none_ignores_the_files(model, tmp_path):
    directory = with_settings(model, tmp_path, ASKED["bad_words_ids"] | {"do_sample": True})
    assert decode(directory, beam_answering(generation_config="none")) == read_goldens()["nothing, 3 beams"]
    facts = read_generation(directory, beam_answering(generation_config="none")).facts
    assert facts == {"source": "", "applied": {}, "ignored": {"all": "--generation-config none"}}


def test_label_decoding_ignores_generation_settings(model, tmp_path):
    directory = with_settings(model, tmp_path, {"do_sample": True})
    facts = read_generation(directory, Answering("labels")).facts
    assert facts["ignored"] == {"all": "labels are scored, nothing is generated"}


def test_answers_do_not_depend_on_the_number_of_devices(model, tmp_path):
    names = ("bad_words_ids", "no_repeat_ngram_size 2", "encoder_no_repeat_ngram_size 2", "repetition_penalty")
    values = {key: value for name in names for key, value in ASKED[name].items()}
    directory, sources = with_settings(model, tmp_path, values), np.concatenate([SOURCES, SOURCES[:2]])
    for beams in (1, 3):
        expected = decode(directory, beam_answering(beams), sources)
        with jax.set_mesh(make_mesh(4, 2)):
            graph, params = nnx.split(load_generator(directory, rules=FSDP_AND_TENSOR_PARALLEL))
            generation = read_generation(directory, beam_answering(beams))
            run = make_decoder(graph, beam_answering(beams), None, generation=generation)
            tokens = np.asarray(run(params, place_batch(sources)))
        assert [[token for token in row if token >= 0] for row in tokens.tolist()] == expected


def test_applied_and_ignored_settings_are_reported(model, tmp_path, capsys):
    values = {"num_beams": 8, "max_length": 64, "temperature": 0.7, "top_k": 50, "use_cache": True, "lenght": 3}
    directory = with_settings(model, tmp_path, values | {"no_repeat_ngram_size": 2, "length_penalty": 2.0})
    beam = open_generation(directory, beam_answering())
    assert beam.facts == {
        "source": GENERATION_CONFIG,
        "applied": {"no_repeat_ngram_size": 2, "length_penalty": 2.0},
        "ignored": {
            "num_beams": "--decode and --num-beams decide",
            "max_length": "--generation-max-length decides",
            "temperature": "only sampling reads it",
            "lenght": "not a name in transformers 5",
        },
    }
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert all(name in printed for name in (str(directory), "no_repeat_ngram_size 2", "num_beams", "lenght"))
    greedy = read_generation(directory, Answering("greedy", generation_max_length=LENGTH))
    assert greedy.applied == {"no_repeat_ngram_size": 2}
    assert greedy.ignored["length_penalty"] == "only beam search reads it"


def test_settings_equal_to_the_options_are_not_reported(model, tmp_path, capsys):
    values = {"num_beams": 3, "max_length": LENGTH + 1, "do_sample": False, "early_stopping": False, "top_p": None}
    assert open_generation(with_settings(model, tmp_path, values), beam_answering()).facts["ignored"] == {}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "values",
    [
        {"do_sample": True},
        {"num_beam_groups": 2},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"guidance_scale": 1.5},
        {"watermarking_config": {"bias": 2.0}},
        {"force_words_ids": [[5]]},
        {"constraints": [1]},
        {"dola_layers": "low"},
        {"stop_strings": ["."]},
        {"max_time": 2.0},
        {"prompt_lookup_num_tokens": 3},
        {"assistant_early_exit": 2},
        {"token_healing": True},
    ],
    ids=lambda values: next(iter(values)),
)
def test_an_unsupported_setting_is_refused(values, model, tmp_path):
    directory = with_settings(model, tmp_path, values)
    with pytest.raises(LampError, match=f"{GENERATION_CONFIG}: {next(iter(values))} is .*--generation-config none"):
        read_generation(directory, beam_answering())


@pytest.mark.parametrize(
    "values",
    [
        {"min_length": "5"},
        {"min_new_tokens": -1},
        {"max_new_tokens": 0},
        {"max_new_tokens": True},
        {"no_repeat_ngram_size": 2.5},
        {"length_penalty": "long"},
        {"length_penalty": float("nan")},
        {"length_penalty": 1e6},
        {"length_penalty": -1e6},
        {"early_stopping": "always"},
        {"early_stopping": 1},
        {"forced_bos_token_id": 48},
        {"forced_bos_token_id": [7]},
        {"forced_eos_token_id": []},
        {"eos_token_id": [1, 48]},
        {"eos_token_id": "</s>"},
        {"decoder_start_token_id": [0, 1]},
        {"bad_words_ids": [5]},
        {"bad_words_ids": [[]]},
        {"bad_words_ids": [[5, -1]]},
        {"sequence_bias": {"5": 1.0}},
        {"sequence_bias": [[[5], "1"]]},
        {"suppress_tokens": 5},
        {"begin_suppress_tokens": [True]},
        {"repetition_penalty": 0},
        {"encoder_repetition_penalty": -1.0},
        {"exponential_decay_length_penalty": [2]},
        {"exponential_decay_length_penalty": [0, 1e30]},
        {"renormalize_logits": "yes"},
        {"forced_eos_token_id": 1, "suppress_tokens": [1, 2]},
    ],
    ids=str,
)
def test_an_invalid_value_of_a_setting_is_refused(values, model, tmp_path):
    directory = with_settings(model, tmp_path, values)
    with pytest.raises(LampError, match=f"{GENERATION_CONFIG}: {next(iter(values))} "):
        read_generation(directory, beam_answering())


@pytest.mark.parametrize("text", ['{"min_length": 3', "[]", ""])
def test_a_damaged_file_is_refused(text, model, tmp_path):
    directory = with_settings(model, tmp_path, {})
    (directory / GENERATION_CONFIG).write_text(text)
    with pytest.raises(LampError, match=GENERATION_CONFIG):
        read_generation(directory, beam_answering())


@pytest.mark.parametrize(("values", "start"), [({"decoder_start_token_id": [5]}, 5), ({"bos_token_id": 5}, 5)])
def test_the_start_token_may_be_a_list_or_bos_token_id(values, start, model, tmp_path):
    directory = with_settings(model, tmp_path, {"decoder_start_token_id": None} | values)
    assert read_generation(directory, beam_answering()) == Generation(decoder_start_token_id=start)


@pytest.mark.parametrize("file", [GENERATION_CONFIG, "config.json"])
def test_a_fine_tuned_model_keeps_the_settings(file, model, tmp_path):
    source = with_settings(model, tmp_path / "source", ASKED["bad_words_ids"] | {"eos_token_id": [1, 21]}, file=file)
    target = tmp_path / "target"
    shutil.copytree(model, target)
    keep_generation(source, target)
    kept = read_generation(target, beam_answering())
    assert kept == Generation(bad_words_ids=((9,), (1,), (4, 4), (0, 11), (11, 6, 7), (5,) * 20), eos_token_id=(1, 21))


def test_a_model_without_settings_has_no_settings_file(model, tmp_path):
    keep_generation(model, tmp_path)
    assert not any(tmp_path.iterdir())


def write_goldens():
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        save_model(Path("model"))
        found = {}
        for number, (name, (values, num_beams)) in enumerate(CASES.items()):
            found[name] = transformers_decode(with_settings(Path("model"), Path(str(number)), values), num_beams)
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(rows)}" for name, rows in found.items())
    GOLDENS.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    write_goldens()
