"""Settings of encoders: read from the files next to the weights, overridden by options, written after training."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from lamp_jax.config import Encoding, PoolingMode, Similarity
from lamp_jax.errors import LampError
from lamp_jax.retrieval import sentence_transformers
from lamp_jax.runs.json_files import read_json, write_json

SETTINGS = "retriever.json"
FILES = (SETTINGS, *sentence_transformers.FILES)
"""Files of `write_settings`."""
LONGEST = 512
"""Maximum length in tokens of encoders that have no limit, and of the public code."""
_SHORTEST = 3  # [CLS], a token and [SEP]


@dataclass(frozen=True)
class EncoderSettings:
    """Settings that an encoder's scores depend on, besides weights and tokenizer; `retriever.json` in lamp's format."""

    pooling: tuple[PoolingMode, ...] = ("mean",)
    """Pooling modes; several are concatenated."""
    normalize: bool = False
    query_prompt: str = ""
    document_prompt: str = ""
    include_prompt: bool = True
    """Whether pooling includes a prompt's tokens."""
    query_length: int = LONGEST
    document_length: int = LONGEST
    similarity: Similarity = "dot"
    lower_case: bool = False
    """Whether texts are lower-cased before tokenization."""
    use_date: bool | None = None
    """Whether lamp trained the encoder on documents that end in ` date: ...`; None for other encoders."""

    @property
    def same_texts(self) -> bool:
        """Whether a text has the same vector as a query and as a document."""
        return (self.query_prompt, self.query_length) == (self.document_prompt, self.document_length)

    @property
    def longest(self) -> int:
        """Maximum length of a text in tokens."""
        return max(self.query_length, self.document_length)

    @property
    def of_vectors(self) -> dict[str, Any]:
        """Settings that vectors depend on, as JSON values."""
        values = asdict(self) | {"pooling": list(self.pooling)}
        return {name: value for name, value in values.items() if name not in ("similarity", "use_date")}

    def __str__(self) -> str:
        parts = [f"{' and '.join(self.pooling)} pooling", *["normalized"] * self.normalize]
        parts += [f"{name} prompt {prompt!r}" for name, prompt in self._prompts if prompt]
        return ", ".join([*parts, *["cosine similarity"] * (self.similarity == "cosine")])

    @property
    def _prompts(self) -> tuple[tuple[str, str], ...]:
        return ("query", self.query_prompt), ("document", self.document_prompt)


@dataclass(frozen=True)
class FoundEncoder:
    """Location and described settings of an encoder."""

    source: str
    """Source of its weights, config and tokenizer: the hub name or directory, or a folder of it."""
    settings: dict[str, Any]
    """Values of `EncoderSettings` in its files, by field name."""


def find_encoder(name: str, directory: Path) -> FoundEncoder:
    """Encoder in a directory; `name` is the hub name or path as the user gave it.

    LampError, naming the file, for damaged or unsupported files, and where lamp's and sentence-transformers' files
    differ.
    """
    folder, settings = sentence_transformers.read_description(directory)
    own = _read_own(directory / SETTINGS)
    differing = sorted(field for field in own.keys() & settings.keys() if own[field] != settings[field])
    if differing:
        raise LampError(
            f"{directory / SETTINGS}: its {', '.join(differing)} differ from those of {sentence_transformers.MODULES} "
            "and the files that it names; delete the wrong file"
        )
    return FoundEncoder(name if folder == directory else str(folder), settings | own)


def _read_own(path: Path) -> dict[str, Any]:
    """Settings that lamp wrote next to an encoder that it trained; earlier versions wrote only `use_date`."""
    if not path.is_file():
        return {}
    values = read_json(path)
    if not isinstance(values, dict) or not isinstance(values.get("use_date"), bool):
        raise LampError(f"{path}: expected an object with 'use_date', true or false; train or copy the encoder again")
    if isinstance(values.get("pooling"), list):
        values["pooling"] = tuple(values["pooling"])
    defaults = asdict(EncoderSettings())
    for name, value in values.items():
        if name != "use_date" and (name not in defaults or not _fits(name, value, defaults[name])):
            raise LampError(f"{path}: {name!r} cannot be {value!r:.60}; train or copy the encoder again")
    return values


def _fits(name: str, value: Any, default: Any) -> bool:
    if name == "pooling":
        return isinstance(value, tuple) and bool(value) and all(mode in get_args(PoolingMode) for mode in value)
    if name == "similarity":
        return value in get_args(Similarity)
    return type(value) is type(default)


def choose_settings(
    found: FoundEncoder, options: Encoding, *, max_length: int | None, longest: int, positions: int
) -> EncoderSettings:
    """Settings of an encoder: the options', or else those of its files.

    Without either, a text has at most `longest` tokens. LampError for lengths beyond the encoder's `positions`, and for
    an unsupported similarity.
    """
    given = {
        field.name: getattr(options, field.name)
        for field in fields(options)
        if getattr(options, field.name) not in (None, ())
    }
    both = {} if max_length is None else dict.fromkeys(("query_length", "document_length"), max_length)
    fallback = dict.fromkeys(("query_length", "document_length"), min(longest, positions))
    values: dict[str, Any] = fallback | found.settings | both | given
    settings = EncoderSettings(**values)
    if settings.similarity not in get_args(Similarity):
        raise LampError(
            f"{found.source}: its similarity function {settings.similarity!r:.60} is not supported; "
            "give --similarity dot or --similarity cosine"
        )
    for name, length in (("query", settings.query_length), ("document", settings.document_length)):
        given_by = f"--{name}-length" if f"{name}_length" in given else "--max-length"
        check_length(positions, length, found.source, option=given_by)
    return settings


def choose_dates(settings: EncoderSettings, *, use_date: bool, name: str) -> bool:
    """Whether documents have dates: as the encoder was trained, or `use_date` for encoders that lamp did not train.

    LampError, with `name`, where dates are requested and the encoder was trained without them.
    """
    if settings.use_date is None:
        return use_date
    if use_date and not settings.use_date:
        raise LampError(f"{name}: was trained on documents without dates; leave --use-date out")
    return settings.use_date


def check_length(positions: int, length: int, name: str, *, option: str = "--max-length") -> None:
    """LampError unless an encoder with this many positions accepts texts of `length` tokens."""
    if length > positions:
        raise LampError(
            f"{name}: reads texts of at most {positions} tokens, not {length}; give {option} {positions} or less"
        )
    if length < _SHORTEST:
        raise LampError(f"{option} {length}: leaves no room for text between special tokens; give {_SHORTEST} or more")


def write_settings(directory: str | Path, settings: EncoderSettings, *, width: int) -> None:
    """Writes `retriever.json` and sentence-transformers' files next to an encoder's weights; `width` as there."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    write_json(Path(directory) / SETTINGS, asdict(replace(settings, use_date=bool(settings.use_date))))
    sentence_transformers.write_description(Path(directory), settings, width)
