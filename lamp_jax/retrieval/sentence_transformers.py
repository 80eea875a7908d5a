"""Description of an encoder in sentence-transformers' files: its modules, pooling, lengths and prompts.

`modules.json` lists the modules, each with its class and its folder: `1_Pooling/config.json` has the pooling of hidden
states. `sentence_bert_config.json`, in the first module's folder, has the maximum length, and
`config_sentence_transformers.json` the prompts. The keys of releases 1 to 6 are read.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from lamp_jax.config import PoolingMode
from lamp_jax.errors import LampError
from lamp_jax.runs.json_files import read_json, write_json

MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
_POOLING = "1_Pooling"
_LENGTHS = tuple(
    f"sentence_{name}_config.json" for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta")
)

# Until release 5.3 a pooling's config had one boolean per mode; several are concatenated in this order.
_BOOLEANS: dict[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ORDER = tuple(_BOOLEANS.values())

_KINDS = {"Transformer", "Pooling", "Normalize"}
_SUPPORTED = "lamp reads encoders of a Transformer, a Pooling and, after them, Normalize: give such an encoder"

# Keys that do not affect a text's vector, or whose only supported value is the default.
_UNREAD_LENGTHS = {"module_output_name", "unpad_inputs", "cache_dir", "tokenizer_name_or_path"}
_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}

_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


def read_description(directory: Path) -> tuple[Path, dict[str, Any]]:
    """Folder of the weights, and the values of `EncoderSettings` in the files, by field name.

    There are no values without `modules.json`. LampError, naming the file, for damaged or unsupported files.
    """
    path = directory / MODULES
    if not path.is_file():
        if (directory / _POOLING).is_dir():
            raise LampError(f"{directory}: has {_POOLING} but no {MODULES}; copy the encoder's directory again")
        return directory, {}
    kinds, folders = _read_modules(path)
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Normalize"}:
        raise LampError(f"{path}: modules {', '.join(kinds)}; {_SUPPORTED}")
    if not folders[0].is_dir():
        raise LampError(f"{path}: the Transformer's folder {str(folders[0])!r} is missing; copy the encoder again")
    for folder in folders[2:]:
        _check_normalize(folder / "config.json")
    found = _read_pooling(folders[1] / "config.json") | {"normalize": len(kinds) > 2}
    return folders[0], found | _read_lengths(folders[0]) | _read_prompts(directory / PROMPTS)


def _read_modules(path: Path) -> tuple[list[str], list[Path]]:
    """Module names without their packages, and their folders, in the order in which they are applied."""
    entries = read_json(path)
    if not isinstance(entries, list) or not entries or not all(map(_is_module, entries)):
        raise LampError(
            f"{path}: expected a list of modules, each with 'type' and 'path', a folder below; copy the encoder again"
        )
    kinds, folders = [], []
    for entry in entries:
        package, _, kind = entry["type"].rpartition(".")
        if not package.startswith("sentence_transformers.") or kind not in _KINDS:
            raise LampError(f"{path}: module {entry['type']!r} is not supported; {_SUPPORTED}")
        kinds.append(kind)
        folders.append(path.parent / entry["path"])  # "": the directory itself
    return kinds, folders


def _is_module(entry: Any) -> bool:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in ("type", "path")):
        return False
    path = PurePosixPath(entry["path"])
    return not path.is_absolute() and ".." not in path.parts


def _read_object(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise LampError(f"{path}: expected an object, found {values!r:.60}; copy or download it again")
    return values


def _refuse(path: Path, name: str, value: Any, known: str) -> LampError:
    return LampError(f"{path}: {name} {value!r:.60} is not supported; lamp reads {known}")


def _check_normalize(path: Path) -> None:
    if path.is_file():
        for name, value in _read_object(path).items():
            if value not in (None, "sentence_embedding"):
                raise _refuse(path, name, value, "'sentence_embedding'")


def _read_pooling(path: Path) -> dict[str, Any]:
    values = _read_object(path)
    known = {"word_embedding_dimension", "embedding_dimension", "include_prompt", "pooling_mode", *_BOOLEANS}
    for name in values.keys() - known:
        raise _refuse(path, name, values[name], ", ".join(sorted(known)))
    for name in values.keys() & {"include_prompt", *_BOOLEANS}:
        if not isinstance(values[name], bool):
            raise _refuse(path, name, values[name], "true or false")
    modes = [mode for name, mode in _BOOLEANS.items() if values.get(name)]
    if not values.keys() & _BOOLEANS.keys():
        modes = ["mean"]
    modes = values.get("pooling_mode", modes)
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or not all(mode in _ORDER for mode in modes):
        raise _refuse(path, "pooling_mode", modes, f"one or several of {', '.join(_ORDER)}")
    return {"pooling": tuple(modes), "include_prompt": values.get("include_prompt", True)}


def _read_lengths(folder: Path) -> dict[str, Any]:
    """Maximum query and document lengths, and whether texts are lower-cased; without the lengths that are not given."""
    path = next((folder / name for name in _LENGTHS if (folder / name).is_file()), None)
    if path is None:
        return {}
    found: dict[str, Any] = {}
    values = _read_object(path)
    for name in ("max_seq_length", "query_length", "document_length"):
        value = values.pop(name, None)
        if value is not None and (type(value) is not int or value < 1):
            raise _refuse(path, name, value, "a number of tokens")
        if value is not None:
            found |= {"query_length": value, "document_length": value} if name == "max_seq_length" else {name: value}
    lower = values.pop("do_lower_case", None)
    if lower not in (None, True, False):
        raise _refuse(path, "do_lower_case", lower, "true or false")
    if values.pop("transformer_task", None) not in (None, "feature-extraction"):
        raise LampError(f"{path}: its transformer_task is not 'feature-extraction'; give another encoder")
    modalities = values.pop("modality_config", None)
    if modalities is not None and modalities != {"text": _TEXT}:
        raise _refuse(path, "modality_config", modalities, f"texts by {_TEXT}")
    for name, value in values.items():
        if value and name not in _UNREAD_LENGTHS:
            raise _refuse(path, name, value, "none but those of a plain text encoder")
    return found | {"lower_case": bool(lower)}


def _read_prompts(path: Path) -> dict[str, Any]:
    """Prompts of queries and documents and the similarity, as far as they are given."""
    if not path.is_file():
        return {}
    values = _read_object(path)
    for name, only in (("model_type", "SentenceTransformer"), ("truncate_dim", None)):
        if values.get(name, only) not in (None, only):
            raise _refuse(path, name, values[name], repr(only))
    prompts, default = values.get("prompts") or {}, values.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(value is None or isinstance(value, str) for value in prompts.values()):
        raise _refuse(path, "prompts", prompts, "an object of texts")
    if default is not None and default not in list(prompts):  # a list: it may be an unhashable value
        raise LampError(
            f"{path}: default_prompt_name {default!r} is not one of its prompts; choose one of {list(prompts)}"
        )
    found: dict[str, Any] = {
        "query_prompt": _choose_prompt(prompts, default, ("query",)),
        "document_prompt": _choose_prompt(prompts, default, _DOCUMENT_PROMPTS),
    }
    similarity = values.get("similarity_fn_name")
    return found | ({"similarity": similarity} if similarity is not None else {})


def _choose_prompt(prompts: Mapping[str, str | None], default: str | None, names: Sequence[str]) -> str:
    """First of the named prompts with text; if none of them is defined, the default prompt.

    sentence-transformers adds an empty prompt "document" to every encoder, so its `encode_document` never uses
    "passage"; an encoder with a prompt "passage" means it for documents.
    """
    named = [prompts[name] or "" for name in names if name in prompts]
    fallback = (prompts[default] or "") if default is not None and not named else ""
    return next(filter(None, named), fallback)


FILES = (MODULES, PROMPTS, _LENGTHS[0], f"{_POOLING}/config.json", "2_Normalize/config.json")
"""Files of `write_description`."""


def write_description(directory: Path, settings: Any, width: int) -> None:
    """Writes files next to an encoder's weights by which sentence-transformers gives the same vectors as `settings`.

    `width` is that of hidden states. Releases before 5.4 can read the files if modes are concatenated in their standard
    order and both lengths are equal.
    """
    kinds = ["Transformer", "Pooling", *["Normalize"] * settings.normalize]
    folders = ["", _POOLING, "2_Normalize"][: len(kinds)]
    modules = [
        {"idx": place, "name": str(place), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, folder) in enumerate(zip(kinds, folders, strict=True))
    ]
    pooling: dict[str, Any] = {name: mode in settings.pooling for name, mode in _BOOLEANS.items()}
    if settings.pooling != tuple(mode for mode in _ORDER if mode in settings.pooling):
        pooling = {"pooling_mode": list(settings.pooling)}
    lengths = {"query_length": settings.query_length, "document_length": settings.document_length}
    longest: dict[str, Any] = {"max_seq_length": max(lengths.values()), "do_lower_case": settings.lower_case}
    for folder in folders[1:]:
        (directory / folder).mkdir(parents=True, exist_ok=True)
    sizes = {"word_embedding_dimension": width, "include_prompt": settings.include_prompt}
    write_json(directory / _POOLING / "config.json", sizes | pooling)
    if settings.normalize:
        write_json(directory / "2_Normalize" / "config.json", {})
    write_json(directory / _LENGTHS[0], longest | (lengths if len(set(lengths.values())) > 1 else {}))
    prompts = {"query": settings.query_prompt, "document": settings.document_prompt}
    similarity = {"default_prompt_name": None, "similarity_fn_name": settings.similarity}
    write_json(directory / PROMPTS, {"prompts": prompts, **similarity})
    write_json(directory / MODULES, modules)
