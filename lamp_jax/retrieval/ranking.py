"""Rankings of complete profiles, best item first: application to questions, and ranking files."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from lamp_jax.data.files import Question, check_same_ids, is_id
from lamp_jax.errors import LampError
from lamp_jax.retrieval.scored import Ranked
from lamp_jax.runs.json_files import atomic_write_bytes, encode, read_json
from lamp_jax.runs.json_records import BOM, parse_record

Rankings = Mapping[str, Sequence[str]]


def apply_ranking(question: Question, ranked_ids: Sequence[str]) -> Question:
    """Question with its profile in the order of `ranked_ids`. LampError as places_of."""
    return replace(question, profile=tuple(question.profile[place] for place in places_of(question, ranked_ids)))


def places_of(question: Question, ranked_ids: Sequence[str]) -> list[int]:
    """Positions of `ranked_ids` in the profile. LampError unless they are the profile's ids, with equal counts.

    Repeated ids of the profile are matched in their order.
    """
    places: dict[str, deque[int]] = {}
    for place, item in enumerate(question.profile):
        places.setdefault(str(item["id"]), deque()).append(place)
    if Counter(ranked_ids) != {item_id: len(found) for item_id, found in places.items()}:
        raise _mismatch(question, ranked_ids)
    return [places[item_id].popleft() for item_id in ranked_ids]


def apply_rankings(questions: Iterable[Question], rankings: Rankings) -> list[Question]:
    """Questions with re-ordered profiles. LampError unless both have the same question ids and item ids."""
    questions = list(questions)
    check_same_ids([question.id for question in questions], rankings, left="the questions", right="the ranking")
    return [apply_ranking(question, rankings[question.id]) for question in questions]


class RankingFile(Mapping[str, Sequence[str]]):
    """Mapping of a ranking file, `{question id: [item id, ...]}`; each list is parsed on access.

    Raises LampError, with the file and the question, for any other content.
    """

    def __init__(self, path: str | Path):
        self.path = path
        self._raw = _read_members(path)

    def __getitem__(self, question_id: str) -> list[str]:
        try:
            item_ids = parse_record(bytes(self._raw[question_id]))
        except ValueError as error:
            raise LampError(
                f"{self.path}, question {question_id!r}: invalid JSON ({error}); rank the questions again"
            ) from None
        if not isinstance(item_ids, list) or not all(map(is_id, item_ids)):
            raise LampError(f"{self.path}, question {question_id!r}: expected a list of item ids; is it a ranking?")
        return [str(item_id) for item_id in item_ids]

    def __contains__(self, question_id: object) -> bool:
        return question_id in self._raw

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)


@lru_cache(maxsize=16)
def open_ranking(path: str, run_id: str) -> RankingFile:
    """Ranking file, which every process reads once in a run of a command.

    A worker may outlive the run, after which the file may change.
    """
    return RankingFile(path)


def _read_members(path: str | Path) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(Path(path).read_bytes().removeprefix(BOM), type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise LampError(f"{path}: expected an object of question ids; is it a ranking?") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LampError(f"{path}: invalid JSON ({error}); rank the questions again") from None
    except FileNotFoundError:
        raise LampError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise LampError(f"{path}: a directory, where a ranking is expected") from None


def read_scores(path: str | Path) -> dict[str, list[float]]:
    """Scores of a file, `{question id: [score, ...]}`, best first. LampError, with the file, for any other content."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise LampError(f"{path}: expected an object of question ids; make it with `lamp rank --scores`")
    for question_id, scores in content.items():
        numbers = isinstance(scores, list) and all(type(score) in (int, float) for score in scores)
        if not numbers or any(one < other for one, other in pairwise(scores)):
            raise LampError(f"{path}, question {question_id!r}: expected scores, best first; see `lamp rank --scores`")
    return content


class RankedLine(NamedTuple):
    """Lines of a question in the output files: its id, and its ranking and scores as JSON."""

    question_id: str
    item_ids: bytes
    scores: bytes


def encode_ranking(ranked: Ranked) -> RankedLine:
    scores = np.asarray(ranked.scores, np.float64).tolist()
    return RankedLine(ranked.question_id, encode(list(ranked.item_ids)), encode(scores))


def write_rankings(path: str | Path, lines: Iterable[RankedLine], *, scores: str | Path = "") -> int:
    """Writes a ranking file, and optionally a file of the items' scores; returns the number of questions.

    One question per line; both files are written atomically.
    """
    seen: set[str] = set()
    with ExitStack() as stack:
        file = stack.enter_context(atomic_write_bytes(path))
        beside = stack.enter_context(atomic_write_bytes(scores)) if scores else None
        for line in lines:
            begin = (b",\n" if seen else b"{\n") + encode(line.question_id) + b": "
            if line.question_id in seen:
                raise LampError(f"{path}: question {line.question_id!r} was ranked twice; question ids must be unique")
            seen.add(line.question_id)
            file.write(begin + line.item_ids)
            if beside:
                beside.write(begin + line.scores)
        for one in (file, beside):
            if one:
                one.write((b"" if seen else b"{") + b"\n}\n")
    return len(seen)


def _mismatch(question: Question, ranked_ids: Sequence[str]) -> LampError:
    in_profile, in_ranking = Counter(str(item["id"]) for item in question.profile), Counter(ranked_ids)
    absent, unknown = list((in_profile - in_ranking).elements()), list((in_ranking - in_profile).elements())
    return LampError(
        f"question {question.id!r}: the ranking lacks {len(absent)} of {len(question.profile)} profile items "
        f"{absent[:3]} and names {len(unknown)} that are not in the profile {unknown[:3]}; "
        "rank this questions file again"
    )
