"""Inputs of a selector: each candidate's prompt, for RSPG-Post with its answer, up to a maximum length."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lamp_jax.artifacts.selector import Candidate, CandidateSet, QuestionCandidates
from lamp_jax.config import SelectorMode
from lamp_jax.errors import LampError
from lamp_jax.inputs.candidate_batches import Candidates
from lamp_jax.inputs.tokenizer import tokenize
from lamp_jax.runs.json_files import read_json, short_repr, write_json
from lamp_jax.tasks.prompts import without_surrogates

SETTINGS = "selector.json"


@dataclass(frozen=True)
class SelectorSettings:
    """Settings of a trained selector that its use requires; stored as `selector.json` next to its weights.

    Names and values are those of the options of `lamp train-selector`; `pool` lists the retrievers of its candidates.
    """

    task: str
    metric: str
    pool: tuple[str, ...]
    mode: SelectorMode
    max_length: int
    case: Literal["cased", "lower"]
    cut: Literal["prompt", "end"]
    first_token: Literal["global", "local"]


_FITS: dict[str, Callable[[Any], bool]] = {
    "task": lambda value: isinstance(value, str),
    "metric": lambda value: isinstance(value, str),
    "pool": lambda value: isinstance(value, list) and value != [] and all(isinstance(name, str) for name in value),
    "mode": lambda value: value in ("pre", "post"),
    "max_length": lambda value: type(value) is int and value > 0,
    "case": lambda value: value in ("cased", "lower"),
    "cut": lambda value: value in ("prompt", "end"),
    "first_token": lambda value: value in ("global", "local"),
}


def read_settings(directory: str | Path) -> SelectorSettings:
    """Settings of a selector that lamp trained. LampError for any other directory."""
    path = Path(directory) / SETTINGS
    if not path.is_file():
        raise LampError(f"{directory}: no selector ({SETTINGS} is missing); train one with `lamp train-selector`")
    found = read_json(path)
    if not isinstance(found, dict) or found.keys() != {field.name for field in fields(SelectorSettings)}:
        raise LampError(f"{path}: does not describe a selector; train or copy it again")
    wrong = [name for name, fits in _FITS.items() if not fits(found[name])]
    if wrong:
        raise LampError(f"{path}: {wrong[0]} is {short_repr(found[wrong[0]])}; train the selector or copy it again")
    return SelectorSettings(**{**found, "pool": tuple(found["pool"])})


def write_settings(directory: str | Path, settings: SelectorSettings) -> None:
    """Writes `selector.json` next to a selector's weights."""
    write_json(Path(directory) / SETTINGS, asdict(settings))


class CandidateReader:
    """Token ids of candidates by the settings of a selector.

    Where prompt and answer are too long together, the end of the prompt is cut; with `cut="end"`, the end of both.
    LampError for an answer that leaves no token for the prompt.
    """

    def __init__(self, tokenizer: Any, settings: SelectorSettings):
        self._tokenizer, self.settings = tokenizer, settings
        special = tokenizer("").input_ids
        if len(special) < 2 or tokenizer.sep_token is None:
            raise LampError(
                f"{tokenizer.name_or_path}: its tokenizer lacks a token for the begin, the end or the separator of "
                "texts; give a selector with the tokenizer that it was trained with"
            )
        self._begin, *self._end = special

    def __call__(self, candidates: Sequence[Candidate]) -> list[list[int]]:
        prompts, length = [one.prompt for one in candidates], self.settings.max_length
        if self.settings.case == "lower":
            prompts = [prompt.lower() for prompt in prompts]
        if self.settings.mode == "pre":
            return tokenize(prompts, self._tokenizer, max_length=length)
        separator = self._tokenizer.sep_token
        if self.settings.cut == "end":
            both = [f"{prompt} {separator} {one.output}" for prompt, one in zip(prompts, candidates, strict=True)]
            return tokenize(both, self._tokenizer, max_length=length)
        heads = self._plain([f"{prompt} " for prompt in prompts])
        tails = self._plain([f"{separator} {one.output}" for one in candidates])
        return [self._join(*parts) for parts in zip(heads, tails, candidates, strict=True)]

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids without the special tokens that begin and end a text."""
        return self._tokenizer([without_surrogates(text) for text in texts], add_special_tokens=False).input_ids

    def _join(self, head: list[int], tail: list[int], candidate: Candidate) -> list[int]:
        length = self.settings.max_length
        room = length - 1 - len(self._end) - len(tail)
        if room < 1:
            raise LampError(
                f"the answer {candidate.output[:40]!r} leaves nothing of {length} tokens for its prompt; "
                f"give a larger --max-length than {length - room}"
            )
        return [self._begin, *head[:room], *tail, *self._end]


def candidate_examples(data: CandidateSet, reader: CandidateReader) -> list[Candidates]:
    """Candidates of the questions as token ids, without missing candidates. LampError where rewards are missing."""
    if not data.rewarded:
        raise LampError("there are candidates without rewards; make them again with `lamp selector-data --golds`")
    return [_example(question, reader) for question in data.questions]


def _example(question: QuestionCandidates, reader: CandidateReader) -> Candidates:
    candidates = list(question.candidates.values())
    texts = [np.array(row, np.int32) for row in reader(candidates)]
    return Candidates(question.id, None, texts, np.array([one.reward for one in candidates], np.float32))
