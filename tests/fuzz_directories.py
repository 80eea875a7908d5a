"""Fuzzing with damaged directories: models, encoders, selectors, adapters, feedback, data sets.

`python tests/fuzz_directories.py --count 2000 --seed 0` damages small directories of every kind. Readers may raise
LampError, or OSError with a file's name, and must raise it where nothing can be computed from the rest. Anything else
is printed, its directory kept.
"""

import argparse
import importlib.util
import json
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from lamp_jax.artifacts.adapters import AdapterEntry, create_store
from lamp_jax.artifacts.feedback import feedback_record, read_feedback, read_retriever_feedback, shard_file
from lamp_jax.artifacts.selector import Candidate, CandidateSet, QuestionCandidates, write_candidates
from lamp_jax.config import Answering, Devices, Lora
from lamp_jax.data.files import Question, write_questions
from lamp_jax.data.sources import open_source
from lamp_jax.decoding.generation import open_generation
from lamp_jax.encoding import open_encoder
from lamp_jax.errors import LampError
from lamp_jax.inputs.selector import CandidateReader, SelectorSettings, read_settings, write_settings
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.models.families import check_generator_tokenizer, load_generator, read_generator_config
from lamp_jax.models.longformer import LongformerConfig
from lamp_jax.models.peft import read_form, read_peft, write_peft
from lamp_jax.models.weights import check_tokenizer, load_longformer
from lamp_jax.retrieval import encoders
from lamp_jax.stages.generate import open_adapters
from lamp_jax.tasks.catalog import find_task
from lamp_jax.training.store import make_form
from tests.fuzz import damage

TINY = Path(__file__).parent / "cases" / "tiny"
TASK = find_task("LaMP-3")
QUESTIONS = [
    Question(str(number), f"review: {number}", tuple({"id": f"{number}{place}", "text": "a film", "score": "4"}
                                                      for place in range(3)), f"u{number}", "4")
    for number in range(6)
]  # fmt: skip
POOL = ("none", "bm25=ranked.json")


@dataclass(frozen=True)
class Kind:
    """A valid directory of one kind, and the readers of such directories."""

    directory: Path
    read: Callable[[Path], Any]
    """Everything that a command does with the directory before it computes."""
    complete: frozenset[str]
    """Files of which no byte may be missing."""
    numbers: frozenset[str] = frozenset()
    """Names of required numbers in `config.json`."""
    words: tuple[str, ...] = ()
    """A command that generates answers with the directory in place of `{}`; empty if no such command is quick."""

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.directory.rglob("*") if path.is_file())


# --- kinds


def make_kinds(folder: Path) -> dict[str, Kind]:
    """Every kind of directory, undamaged, in the folder, with the other inputs of the commands next to them."""
    write_questions(folder / "questions.json", QUESTIONS)
    candidates = {name: Candidate("a prompt", "4", float(name == "bm25"), {}) for name in ("none", "bm25")}
    questions = [QuestionCandidates(one.id, one.input, "4", candidates) for one in QUESTIONS]
    write_candidates(folder / "pool.json", CandidateSet(TASK, "mae", ("none", "bm25"), questions))
    models = _make_models(folder)
    stores, feedback = _make_adapters(folder), _make_feedback(folder)
    return models | stores | feedback | {"data set": _make_data_set(folder)}


_T5_NUMBERS = frozenset({"vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"})
_BERT_NUMBERS = frozenset({"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"})
_MODEL = frozenset({"config.json", "model.safetensors", "tokenizer.json"})
_ENCODER = frozenset({"config.json", "model.safetensors", "modules.json"})  # its vocab.txt is a tokenizer too


def _make_models(folder: Path) -> dict[str, Kind]:
    t5, encoder, selector = (folder / name for name in ("t5", "encoder", "selector"))
    shutil.copytree(TINY / "t5_ft", t5)
    shutil.copytree(TINY / "bert", encoder)
    shutil.copytree(TINY / "longformer_w512", selector)
    settings = encoders.EncoderSettings(pooling=("cls",), normalize=True, query_prompt="query: ", query_length=64)
    encoders.write_settings(encoder, settings, width=json.loads((encoder / "config.json").read_text())["hidden_size"])
    described = SelectorSettings("LaMP-3", "mae", ("none", "bm25"), "post", 64, "cased", "prompt", "global")
    write_settings(selector, described)
    asked = ("--task", TASK.name, "--questions", str(folder / "questions.json"))
    generate = ("generate", *asked, "--model", "{}", "--max-length", "64", "--generation-max-length", "4")
    rank = ("rank", *asked, "--ranker", "dense", "--encoder", "{}")
    select = ("select", "--data", str(folder / "pool.json"), "--selector", "{}")
    kinds = {
        "model": Kind(t5, _read_model, _MODEL, _T5_NUMBERS, generate),
        "model in shards": Kind(_split(t5, folder), _read_model, _MODEL | _SHARDS, _T5_NUMBERS, generate),
        "encoder": Kind(encoder, _read_encoder, _ENCODER, _BERT_NUMBERS, rank),
        "selector": Kind(selector, _read_selector, _MODEL | {"selector.json"}, _BERT_NUMBERS, select),
    }
    if importlib.util.find_spec("torch"):
        kinds["model of PyTorch"] = Kind(_as_torch(t5, folder), _read_model, _MODEL | {_TORCH}, _T5_NUMBERS, generate)
    return kinds


_INDEX, _TORCH = "model.safetensors.index.json", "pytorch_model.bin"
_SHARDS = frozenset({_INDEX, "model-1.safetensors", "model-2.safetensors"})


def _split(model: Path, folder: Path) -> Path:
    """Splits the model's tensors into two files."""
    directory = folder / "shards"
    shutil.copytree(model, directory)
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = {name: f"model-{1 + place % 2}.safetensors" for place, name in enumerate(sorted(tensors))}
    for shard in sorted(set(names.values())):
        save_file({name: tensors[name] for name in tensors if names[name] == shard}, directory / shard)
    (directory / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return directory


def _as_torch(model: Path, folder: Path) -> Path:
    import torch

    directory = folder / "torch"
    shutil.copytree(model, directory)
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save({name: torch.tensor(values) for name, values in tensors.items()}, directory / _TORCH)
    return directory


def _make_adapters(folder: Path) -> dict[str, Kind]:
    store, peft, base = folder / "store", folder / "peft", str(TINY / "t5_ft")
    form = make_form(base, Lora(rank=2), "float32")
    rng = np.random.default_rng(0)
    adapters = {name: rng.normal(size=(3, *shape)).astype(np.float32) for name, shape in form.shapes.items()}
    made = create_store(store, form)
    made.append([AdapterEntry(f"u{number}", 3, 2, 0.5) for number in range(3)], adapters)
    made.close()
    record = {"stage": "trainadapters", "fingerprint": "x", "finished": True, "users": 3}
    (store / "run.json").write_text(json.dumps(record))
    one = {name: values[0] for name, values in adapters.items()}
    write_peft(peft, one, read_generator_config(base), form.lora, base=base)
    words = ("generate", "--task", TASK.name, "--questions", str(folder / "questions.json"), "--model", base)
    words += ("--adapters", "{}", "--max-length", "64", "--generation-max-length", "4")
    complete = frozenset(path.name for path in store.iterdir() if path.name != "run.json")
    return {
        "store": Kind(store, _read_store, complete, words=words),
        "peft": Kind(peft, _read_peft, frozenset({"adapter_config.json", "adapter_model.safetensors"})),
    }


def _make_feedback(folder: Path) -> dict[str, Kind]:
    kinds = {}
    for kind, read in (("items", _read_items), ("retrievers", _read_retrievers)):
        directory = folder / kind
        directory.mkdir()
        settings = {"task": TASK.name, "shards": 2, "pool": list(POOL)}
        record = {"stage": f"feedback{kind}", "fingerprint": "x", "finished": True, "settings": settings}
        (directory / "run.json").write_text(json.dumps(record))
        shards = [directory / shard_file(kind, shard, 2) for shard in range(2)]
        for shard, path in enumerate(shards):
            lines = [json.dumps(one) for question in QUESTIONS[shard::2] for one in _records(kind, question)]
            path.write_text("\n".join(lines) + "\n")
        kinds[f"feedback on {kind}"] = Kind(directory, read, frozenset({"run.json", *(one.name for one in shards)}))
    return kinds


def _records(kind: Any, question: Question) -> list[dict[str, Any]]:
    names: list[dict[str, Any]] = [{"retriever": name.partition("=")[0]} for name in POOL]
    if kind == "items":
        names = [{"item": item["id"], "rank": rank} for rank, item in enumerate(question.profile)]
    return [
        feedback_record(kind, {"question": question.id} | one, "a prompt", "4", {"MAE": 0.5 * place})
        for place, one in enumerate(names)
    ]


def _make_data_set(folder: Path) -> Kind:
    from lamp_jax import cli

    tree, output = folder / "tree", folder / "data"
    tree.mkdir()
    write_questions(tree / "train_questions.json", QUESTIONS)
    assert cli.main(["tfds", "--task", TASK.name, "--data", str(tree), "--output", str(output)]) == 0
    version = next(output.glob("lamp/*/[0-9]*"))
    complete = {f"{version.relative_to(output)}/{path.name}" for path in version.iterdir()}
    return Kind(output, _read_data_set, frozenset(complete))


# --- readers


def _read_model(directory: Path) -> None:
    open_generation(directory, Answering())
    check_generator_tokenizer(load_tokenizer(directory), directory)
    load_generator(directory)


def _read_encoder(directory: Path) -> None:
    open_encoder(str(directory), Devices())


def _read_selector(directory: Path) -> None:
    settings = read_settings(directory)
    tokenizer = load_tokenizer(directory)
    check_tokenizer(tokenizer, directory, LongformerConfig)
    CandidateReader(tokenizer, settings)
    model = load_longformer(directory, first_token=settings.first_token)
    encoders.check_length(model.config.longest, settings.max_length, str(directory))


def _read_store(directory: Path) -> None:
    open_adapters(str(directory), str(TINY / "t5_ft")).read(["u0", "u1", "u2"])


def _read_peft(directory: Path) -> None:
    config = read_generator_config(TINY / "t5_ft")
    read_peft(directory, config, make_form(str(TINY / "t5_ft"), read_form(directory, config), "float32").shapes)


def _read_items(directory: Path) -> None:
    read_feedback([directory], TASK, QUESTIONS, profile_size=3)


def _read_retrievers(directory: Path) -> None:
    read_retriever_feedback(directory, TASK, QUESTIONS)


def _read_data_set(directory: Path) -> None:
    assert list(open_source(directory / "train", TASK)) == QUESTIONS


# --- damages: each returns whether a command must refuse the damaged directory


def damage_directory(kind: Kind, directory: Path, rng: random.Random) -> tuple[str, bool]:
    """Damages a copy of the kind's directory; returns the damage and whether it must be refused."""
    damages: list[Callable[[Kind, Path, random.Random], tuple[str, bool]]] = [_lose, _cut_off, _point, _change, _change]
    if kind.numbers:
        damages += [_set_number]
    if any(path.suffix == ".safetensors" for path in kind.files):
        damages += [_spoil_tensor, _spoil_tensor]
    return rng.choice(damages)(kind, directory, rng)


def _choose(kind: Kind, directory: Path, rng: random.Random) -> tuple[str, Path]:
    name = str(rng.choice(kind.files).relative_to(kind.directory))
    return name, directory / name


def _lose(kind: Kind, directory: Path, rng: random.Random) -> tuple[str, bool]:
    name, path = _choose(kind, directory, rng)
    path.unlink()
    instead = rng.choice(("nothing", "nothing", "a directory", "a dead link"))
    if instead == "a directory":
        path.mkdir()
    elif instead == "a dead link":
        path.symlink_to(directory / "elsewhere")
    return f"{instead} for {name}", name in kind.complete


def _cut_off(kind: Kind, directory: Path, rng: random.Random) -> tuple[str, bool]:
    name, path = _choose(kind, directory, rng)
    content = path.read_bytes()
    left = content[: rng.choice((0, rng.randrange(len(content)), rng.randrange(len(content))))]
    path.write_bytes(left)
    return (
        f"{name} cut off after {len(left)} of {len(content)} bytes",
        name in kind.complete and left != content.rstrip(),
    )


def _point(kind: Kind, directory: Path, rng: random.Random) -> tuple[str, bool]:
    name, path = _choose(kind, directory, rng)
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1000\n")
    return f"a pointer for {name}", name in kind.complete


def _change(kind: Kind, directory: Path, rng: random.Random) -> tuple[str, bool]:
    """Applies `damage` to some bytes; only JSON that became invalid must be refused."""
    name, path = _choose(kind, directory, rng)
    before = path.read_bytes()
    path.write_bytes(damage(before, rng))
    if path.suffix != ".json" or name not in kind.complete:
        return f"changes in {name}", False
    try:
        text = path.read_bytes().decode(errors="surrogatepass")  # as lamp's own files may contain lone surrogates
        good = isinstance(json.loads(text), type(json.loads(before)))
    except (ValueError, RecursionError):
        good = False
    return f"changes in {name}{'' if good else ', no such JSON any more'}", not good


_NO_NUMBERS = (None, "64", "", True, [], {}, -1, 0, 1.5, 10**9, 10**30)


def _set_number(kind: Kind, directory: Path, rng: random.Random) -> tuple[str, bool]:
    path, name = directory / "config.json", rng.choice(sorted(kind.numbers))
    config = json.loads(path.read_text())
    config[name] = rng.choice((*_NO_NUMBERS, config[name] + 1, config[name] * 2))
    path.write_text(json.dumps(config))
    # Other numbers of heads may fit the same matrices where these are joined, as in BERT.
    return f"{name} {config[name]!r}", name != "num_attention_heads" or type(config[name]) is not int


def _spoil_tensor(kind: Kind, directory: Path, rng: random.Random) -> tuple[str, bool]:
    path = rng.choice([directory / one.name for one in kind.files if one.suffix == ".safetensors"])
    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    tensor = tensors[name].copy()
    how = rng.choice(("lost", "renamed", "nan", "infinity", "too long", "too short", "flat", "integers", "again"))
    match how:
        case "lost":
            del tensors[name]
        case "renamed":
            tensors[f"{name}.old"] = tensors.pop(name)
        case "nan" | "infinity" if tensor.dtype.kind == "u":
            tensor.reshape(-1)[rng.randrange(tensor.size)] ^= 1
        case "nan" | "infinity":
            tensor.reshape(-1)[rng.randrange(tensor.size)] = float(how.replace("infinity", "-inf"))
        case "too long":
            tensor = np.concatenate([tensor, tensor[:1]])
        case "too short":
            tensor = tensor[:-1]
        case "flat":
            tensor = tensor[None] if tensor.ndim == 1 else tensor.reshape(-1)
        case "integers":
            tensor = tensor.astype(np.int8)
        case "again":  # as another type: no value is lost
            tensor = tensor.astype(rng.choice((np.float64, np.float16, ml_dtypes.bfloat16)))
    if name in tensors:
        tensors[name] = np.ascontiguousarray(tensor)
    save_file(tensors, path, metadata={"format": "pt"})
    return f"{path.name}: {name} {how}", how != "again"


# --- outcomes


def outcome(kind: Kind, directory: Path, *, refuse: bool) -> str:
    """`read`, `refused`, or a failure, which begins with `!`."""
    try:
        kind.read(directory)
    except LampError:
        return "refused"
    except Exception as error:
        if isinstance(error, OSError) and error.filename:
            return "refused"
        return "!" + traceback.format_exc(limit=-4)
    return "!it was read" if refuse else "read"


def _answer(kind: Kind, directory: Path) -> str:
    """Outcome of the kind's command: `answered`, `refused`, or a failure."""
    from lamp_jax import cli

    words = [word.replace("{}", str(directory)) for word in kind.words]
    try:
        status = cli.main([*words, "--output", str(directory.with_suffix(".answers"))])
    except Exception:
        return "!" + traceback.format_exc(limit=-4)
    return "refused" if status else "answered"


def fuzz(count: int, seed: int, folder: Path, *, answer: bool = False) -> tuple[Counter[str], list[str]]:
    """The number of each outcome, and the failures, whose directories remain in the folder.

    With `answer`, commands also generate answers with the directories that could be read.
    """
    kinds = make_kinds(folder)
    counts: Counter[str] = Counter()
    failures = []
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        name = rng.choice(sorted(kinds))
        directory = folder / f"damaged-{number}"
        shutil.copytree(kinds[name].directory, directory)
        what, refuse = damage_directory(kinds[name], directory, rng)
        found = outcome(kinds[name], directory, refuse=refuse)
        if found == "read" and answer and kinds[name].words:
            found = _answer(kinds[name], directory)
        counts[f"{name}: {'FAILED' if found.startswith('!') else found}"] += 1
        if found.startswith("!"):
            failures.append(f"seed {seed}, directory {number}, {name}, {what}: {directory}\n{found[1:]}")
        else:
            shutil.rmtree(directory)
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(description="Damages directories and reads them.")
    parser.add_argument("--count", type=int, default=2000, help="directories to damage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--answer", action="store_true", help="also run commands with what could be read")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lamp-fuzz-"))
    counts, failures = fuzz(options.count, options.seed, folder, answer=options.answer)
    print("\n".join(failures))
    for one in sorted(counts):
        print(f"{counts[one]:7,}  {one}")
    print(f"{options.count:,} directories, {len(failures)} failures, kept in {folder}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
