"""Settings of encoders: from files, from options, and written; errors that name damaged files."""

import json
from dataclasses import asdict, replace

import pytest

from lamp_jax.config import Encoding
from lamp_jax.errors import LampError
from lamp_jax.retrieval.encoders import (
    EncoderSettings,
    FoundEncoder,
    check_length,
    choose_settings,
    find_encoder,
    write_settings,
)

OLD, NEW = "sentence_transformers.models.", "sentence_transformers.sentence_transformer.modules.pooling."
MODULES = [{"path": "", "type": f"{OLD}Transformer"}, {"path": "1_Pooling", "type": f"{OLD}Pooling"}]
NORMALIZE = {"path": "2_Normalize", "type": "sentence_transformers.base.modules.normalize.Normalize"}
CLS = {"word_embedding_dimension": 8, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


def write(folder, modules=MODULES, pooling=CLS, **files):
    """Writes an encoder's files; further files are given by their names without `.json`."""
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    named = {"modules": modules, "1_Pooling/config": pooling, **files}
    for name, values in named.items():
        text = values if isinstance(values, str) else json.dumps(values)
        (folder / f"{name}.json").write_text(text)
    return folder


def find(folder):
    return find_encoder(str(folder), folder)


def choose(folder, options=Encoding(), **given):  # noqa: B008 (frozen)
    return choose_settings(find(folder), options, **{"max_length": None, "longest": 512, "positions": 512} | given)


def test_mean_pooling_is_the_default(tmp_path):
    assert find(tmp_path) == FoundEncoder(str(tmp_path), {})
    assert choose(tmp_path) == EncoderSettings()


def test_a_hub_name_is_kept(tmp_path):
    assert find_encoder("some/encoder", write(tmp_path)).source == "some/encoder"


@pytest.mark.parametrize(
    "pooling",
    [CLS, {"embedding_dimension": 8, "pooling_mode": "cls", "include_prompt": True}, {"pooling_mode": ["cls"]}],
)
def test_pooling_is_read_in_both_formats(tmp_path, pooling):
    new = [{"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}]
    new += [{"path": "1_Pooling", "type": f"{NEW}Pooling"}, NORMALIZE]
    assert choose(write(tmp_path, new, pooling)) == EncoderSettings(pooling=("cls",), normalize=True)
    assert choose(write(tmp_path, MODULES, pooling)) == EncoderSettings(pooling=("cls",))


def test_the_encoder_is_read_from_the_folder_of_the_first_module(tmp_path):
    modules = [{**MODULES[0], "path": "0_Transformer"}, MODULES[1]]
    (tmp_path / "0_Transformer").mkdir()
    write(tmp_path, modules, **{"0_Transformer/sentence_bert_config": {"max_seq_length": 99}})
    assert find(tmp_path).source == str(tmp_path / "0_Transformer")
    assert find_encoder("some/encoder", tmp_path).source == str(tmp_path / "0_Transformer")
    assert choose(tmp_path).longest == 99


PROMPTS = "config_sentence_transformers"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ("", "")),
        ({"prompts": {}, "default_prompt_name": None}, ("", "")),
        ({"prompts": None}, ("", "")),
        ({"prompts": {"query": "q: ", "document": "d: ", "passage": "p: "}}, ("q: ", "d: ")),
        ({"prompts": {"query": "q: ", "passage": "p: "}}, ("q: ", "p: ")),
        ({"prompts": {"query": "q: ", "document": "", "passage": "p: "}}, ("q: ", "p: ")),
        ({"prompts": {"query": "q: ", "corpus": "c: "}}, ("q: ", "c: ")),
        ({"prompts": {"query": "q: ", "other": "o: "}, "default_prompt_name": "other"}, ("q: ", "o: ")),
        ({"prompts": {"query": "", "document": None, "o": "o: "}, "default_prompt_name": "o"}, ("", "")),
    ],
)
def test_prompts_are_read_by_name(tmp_path, values, expected):
    settings = choose(write(tmp_path, **{PROMPTS: values}))
    assert (settings.query_prompt, settings.document_prompt) == expected


LENGTHS = "sentence_bert_config"
MODALITY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"max_seq_length": 256, "do_lower_case": False}, (256, 256)),
        ({"max_seq_length": None}, (512, 512)),
        ({"max_seq_length": 256, "query_length": 32}, (32, 256)),
        ({"query_length": 32, "document_length": 180}, (32, 180)),
        ({"transformer_task": "feature-extraction", "modality_config": MODALITY, "unpad_inputs": True}, (512, 512)),
    ],
)
def test_lengths_are_read(tmp_path, values, expected):
    settings = choose(write(tmp_path, **{LENGTHS: values}))
    assert (settings.query_length, settings.document_length) == expected


def test_options_override_files(tmp_path):
    prompts = {"prompts": {"query": "q: ", "passage": "p: "}, "similarity_fn_name": "cosine"}
    write(tmp_path, [*MODULES, NORMALIZE], **{PROMPTS: prompts, LENGTHS: {"max_seq_length": 256}})
    options = Encoding(("max", "mean"), normalize=False, query_prompt="", similarity="dot", document_length=96)
    expected = EncoderSettings(("max", "mean"), False, "", "p: ", query_length=64, document_length=96)
    assert choose(tmp_path, options, max_length=64) == expected
    assert choose(tmp_path, max_length=64).longest == 64
    assert choose(tmp_path).similarity == "cosine"


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        (Encoding(), {"max_length": 513}, "reads texts of at most 512 tokens, not 513; give --max-length 512 or less"),
        (Encoding(query_length=600), {}, "not 600; give --query-length 512 or less"),
        (Encoding(document_length=600), {}, "not 600; give --document-length 512 or less"),
        (Encoding(document_length=2), {}, "--document-length 2: leaves no room"),
        (Encoding(), {"max_length": 0}, "--max-length 0: leaves no room"),
    ],
)
def test_invalid_lengths_are_refused(tmp_path, options, given, message):
    with pytest.raises(LampError, match=message):
        choose(tmp_path, options, **given)


def test_a_length_in_the_files_beyond_the_positions_is_refused(tmp_path):
    with pytest.raises(LampError, match="at most 512 tokens, not 1024"):
        choose(write(tmp_path, **{LENGTHS: {"max_seq_length": 1024}}))


def test_the_maximum_length_is_that_of_tokenizer_and_positions(tmp_path):
    assert choose(tmp_path, longest=10**30).longest == 512
    assert choose(tmp_path, longest=128).longest == 128
    check_length(32, 32, "some/encoder")


@pytest.mark.parametrize("name", ["euclidean", "manhattan", "maxsim", 3])
def test_other_similarities_are_refused_unless_one_is_given(tmp_path, name):
    write(tmp_path, **{PROMPTS: {"similarity_fn_name": name}})
    with pytest.raises(LampError, match=f"similarity function {name!r} is not.*give --similarity dot"):
        choose(tmp_path)
    assert choose(tmp_path, Encoding(similarity="dot")).similarity == "dot"


def module(kind, path="2_Other"):
    return [*MODULES, {"path": path, "type": kind}]


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"modules": module(f"{OLD}Dense")}, r"modules\.json: module 'sentence_transformers\.models\.Dense'"),
        ({"modules": module("mine.Pooling")}, r"modules\.json: module 'mine\.Pooling' is not supported"),
        ({"modules": module(f"{OLD}Router")}, r"modules\.json: module .*Router"),
        ({"modules": MODULES[:1]}, r"modules\.json: modules Transformer; lamp reads encoders of"),
        ({"modules": [MODULES[0], NORMALIZE, MODULES[1]]}, r"modules\.json: modules Transformer, Normalize, Pooling"),
        ({"modules": module(f"{OLD}Normalize", "../elsewhere")}, r"modules\.json: expected a list of modules"),
        ({"modules": module(f"{OLD}Normalize", "/etc")}, r"modules\.json: expected a list of modules"),
        (
            {"modules": [{**MODULES[0], "path": "0_Gone"}, MODULES[1]]},
            r"modules\.json: the Transformer's folder .*0_Gone",
        ),
        ({"modules": [{**MODULES[0], "path": "a\0b"}, MODULES[1]]}, r"modules\.json: the Transformer's folder"),
        ({"modules": []}, r"modules\.json: expected a list of modules"),
        ({"modules": {}}, r"modules\.json: expected a list of modules"),
        ({"modules": [None]}, r"modules\.json: expected a list of modules"),
        ({"modules": "[{"}, r"modules\.json: invalid JSON"),
        ({"pooling": []}, r"1_Pooling/config\.json: expected an object"),
        ({"pooling": "{"}, r"1_Pooling/config\.json: invalid JSON"),
        ({"pooling": {**CLS, "pooling_mode_cls_token": 1}}, r"config\.json: pooling_mode_cls_token 1 is not supported"),
        ({"pooling": {**CLS, "pooling_mode_cls_token": False}}, r"config\.json: pooling_mode \[\] is not supported"),
        ({"pooling": {**CLS, "pooling_mode_attention": True}}, r"config\.json: pooling_mode_attention True is not"),
        (
            {"pooling": {"pooling_mode": "first"}},
            r"config\.json: pooling_mode \['first'\] is not supported; .*cls, max",
        ),
        ({"pooling": {"pooling_mode": None}}, r"config\.json: pooling_mode None is not supported"),
        ({"pooling": {"pooling_mode": [["cls"]]}}, r"config\.json: pooling_mode"),
        ({"pooling": {"include_prompt": "no"}}, r"config\.json: include_prompt 'no' is not supported"),
        ({LENGTHS: {"max_seq_length": "256"}}, r"sentence_bert_config\.json: max_seq_length '256'"),
        ({LENGTHS: {"max_seq_length": True}}, r"sentence_bert_config\.json: max_seq_length True"),
        ({LENGTHS: {"max_seq_length": 0}}, r"sentence_bert_config\.json: max_seq_length 0"),
        ({LENGTHS: {"do_lower_case": "yes"}}, r"sentence_bert_config\.json: do_lower_case"),
        ({LENGTHS: {"transformer_task": "fill-mask"}}, r"sentence_bert_config\.json: its transformer_task"),
        ({LENGTHS: {"modality_config": {"message": {}}}}, r"sentence_bert_config\.json: modality_config"),
        ({LENGTHS: {"query_expansion": {"length": 32}}}, r"sentence_bert_config\.json: query_expansion"),
        ({LENGTHS: {"tokenizer_args": {"use_fast": False}}}, r"sentence_bert_config\.json: tokenizer_args"),
        ({LENGTHS: []}, r"sentence_bert_config\.json: expected an object"),
        ({PROMPTS: {"model_type": "CrossEncoder"}}, r"transformers\.json: model_type 'CrossEncoder' is not supported"),
        ({PROMPTS: {"truncate_dim": 64}}, r"transformers\.json: truncate_dim 64 is not supported"),
        ({PROMPTS: {"prompts": ["query: "]}}, r"transformers\.json: prompts"),
        ({PROMPTS: {"prompts": {"query": 1}}}, r"transformers\.json: prompts"),
        (
            {PROMPTS: {"prompts": {}, "default_prompt_name": "query"}},
            r"transformers\.json: default_prompt_name 'query'",
        ),
        ({PROMPTS: {"prompts": {}, "default_prompt_name": ["q"]}}, r"transformers\.json: default_prompt_name"),
    ],
)
def test_files_that_are_damaged_or_not_supported_are_named(tmp_path, files, named):
    write(tmp_path, **files)
    with pytest.raises(LampError, match=named) as caught:
        choose(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_files_that_are_missing_are_named(tmp_path):
    write(tmp_path, [*MODULES, NORMALIZE])
    (tmp_path / "2_Normalize").mkdir()
    (tmp_path / "2_Normalize" / "config.json").write_text('{"module_input_name": "token_embeddings"}')
    with pytest.raises(LampError, match=r"2_Normalize/config\.json: module_input_name 'token_embeddings'"):
        find(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").unlink()
    (tmp_path / "modules.json").write_text(json.dumps(MODULES))
    with pytest.raises(LampError, match=r"1_Pooling/config\.json: no such file"):
        find(tmp_path)
    (tmp_path / "modules.json").unlink()
    with pytest.raises(LampError, match=r"has 1_Pooling but no modules\.json"):
        find(tmp_path)


TRAINED = EncoderSettings(("cls", "mean"), True, "q: ", "d: ", False, 64, 96, "cosine", True, use_date=True)


@pytest.mark.parametrize("settings", [TRAINED, replace(TRAINED, pooling=("mean", "cls"), use_date=False)])
def test_settings_round_trip(tmp_path, settings):
    write_settings(tmp_path / "new", settings, width=8)
    assert choose(tmp_path / "new", longest=7) == settings
    (tmp_path / "new" / "retriever.json").unlink()
    assert choose(tmp_path / "new", longest=7) == replace(settings, use_date=None)


def test_an_encoder_of_an_earlier_version_has_mean_pooling(tmp_path):
    (tmp_path / "retriever.json").write_text('{"use_date": false}')
    assert choose(tmp_path) == EncoderSettings(use_date=False)


def test_files_that_contradict_each_other_are_refused(tmp_path):
    write_settings(tmp_path, TRAINED, width=8)
    write(tmp_path)
    with pytest.raises(
        LampError, match=r"retriever\.json: its include_prompt, normalize, pooling differ from those of"
    ):
        find(tmp_path)


def spoil(**changes):
    return json.dumps({**asdict(TRAINED), **changes})


@pytest.mark.parametrize(
    ("content", "message"),
    [(content, "expected an object with 'use_date'") for content in ("[]", "{}", '{"use_date": 1}')]
    + [('{"use_date": tr', "invalid JSON")]
    + [
        (spoil(pooling=[]), "'pooling' cannot be"),
        (spoil(pooling="mean"), "'pooling' cannot be 'mean'"),
        (spoil(pooling=["first"]), "'pooling' cannot be"),
        (spoil(normalize=0), "'normalize' cannot be 0"),
        (spoil(query_length="64"), "'query_length' cannot be '64'"),
        (spoil(document_length=True), "'document_length' cannot be True"),
        (spoil(similarity="euclidean"), "'similarity' cannot be 'euclidean'"),
        (spoil(other=1), "'other' cannot be 1"),
    ],
)
def test_settings_that_cannot_be_read_are_an_error_that_names_the_file(tmp_path, content, message):
    (tmp_path / "retriever.json").write_text(content)
    with pytest.raises(LampError, match=rf"retriever\.json: {message}"):
        find(tmp_path)
