"""Fuzzing of readers with damaged files: each is read, or rejected with a reason.

`python tests/fuzz.py --count 10000 --seed 0` damages small files of every kind. LampError is the only exception that a
reader may raise, and `lamp check` must report an error for each file that a reader rejects. Anything else is printed,
its file kept.
"""

import argparse
import json
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from lamp_jax.artifacts.feedback import read_feedback
from lamp_jax.artifacts.selector import read_candidates
from lamp_jax.data.chunks import cut_chunks
from lamp_jax.data.files import Question, read_outputs, read_questions
from lamp_jax.datasets.checking import check_file
from lamp_jax.errors import LampError
from lamp_jax.options import Merge, Work
from lamp_jax.retrieval.chunks import rank_chunk
from lamp_jax.retrieval.rankers import RankOptions
from lamp_jax.retrieval.ranking import RankingFile, read_scores
from lamp_jax.runs.json_files import read_json
from lamp_jax.runs.json_records import parse_record
from lamp_jax.stages.merge import merge_chunk
from lamp_jax.tasks.catalog import Task, find_task

Reader = Callable[[Path], Any]

_FORM_OF = {"questions": "questions", "merged questions": "questions", "predictions": "outputs"}
_RAW = "(raw)"
_DEPTHS = (3, 130, 260, 900, 1000, 1020, 3000, 100_000)
_ODD = (
    *(b"null", b"true", b"0", b"-1", b"1.5", b"[]", b"{}", b'""', b"[null]", b'"1"', b'"2003-13-01"', b'"2003-02"'),
    *(b"NaN", b"-Infinity", b"1e400", b"18446744073709551616", b"9" * 400, b"9" * 5000, b"tru", b"[[null], {}]"),
    *(b'"\\ud83d"', b'"\xed\xa0\xbd"', b'"\\ud83d\\ude00"', b'"\xc2\x85"', b'"\\u2028"', b'"\\u0000"', b'"\xe9"'),
    *(b"[" * depth + b"]" * depth for depth in _DEPTHS),
    *(b'{"a": ' * depth + b"1" + b"}" * depth for depth in _DEPTHS),
)


@dataclass(frozen=True)
class Kind:
    """A valid file of one kind, and the readers of such files, by name."""

    content: bytes
    readers: dict[str, Reader]
    form: str = ""
    """The kind's name in `lamp check`; empty if `lamp check` does not check such files."""
    task: Task | None = None


def questions_of_a_task(task: Task, *, golds: bool = False) -> list[dict[str, Any]]:
    """Four questions with zero to four items."""
    texts = {"title": 'a "fine" title', "ref1": "one", "ref2": "other", "text": "good é film\r\n"}
    more = {"output": task.labels[0] if task.labels else "a text"} if golds else {}
    return [
        {
            "id": str(number),
            "input": task.template.format(**texts),
            "user_id": number,
            "profile": [
                {
                    "id": f"{number}{place}",
                    **{name: f"{name} of {place} \\ [{{" for name in task.fields},
                    **({task.target: task.labels[place]} if task.labels and task.target not in task.document else {}),
                    "date": f"2003-0{1 + place}-01",
                }
                for place in range(number % 10)
            ],
            **more,
        }
        for number in (110, 12, 13, 14)
    ]


def damage(content: bytes, rng: random.Random) -> bytes:
    """The content with zero to three damages."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice((_damage_value, _damage_value, *_DAMAGES))(content, rng)
    return content


def _damage_value(content: bytes, rng: random.Random) -> bytes:
    """Replaces, removes or duplicates a value of the JSON."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return content
    spots = list(_spots(value))
    if not spots:
        return content
    holder, key = rng.choice(spots)
    match rng.choice(("replace", "replace", "remove", "repeat", "swap")):
        case "replace":
            holder[key] = _RAW
        case "remove":
            del holder[key]
        case "repeat" if isinstance(holder, list):
            holder.insert(key, holder[key])
        case "repeat":
            holder[rng.choice(("id", "", "date", "output", "golds"))] = holder[key]
        case "swap":
            other, place = rng.choice(spots)
            holder[key], other[place] = json.loads(json.dumps([other[place], holder[key]]))
    try:
        written = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):  # circular, or nested deeply
        return content
    return written.replace(json.dumps(_RAW).encode(), rng.choice(_ODD))


def _spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every nested place in a value, up to a maximum depth."""
    todo = [(value, 0)]
    while todo:
        holder, depth = todo.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys if depth < 8 else ():
            yield holder, key
            todo.append((holder[key], depth + 1))


def _two_places(content: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + rng.choice((1, 2, 10, 200)))


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _delete(content: bytes, rng: random.Random) -> bytes:
    start, end = _two_places(content, rng)
    return content[:start] + content[end:]


def _double(content: bytes, rng: random.Random) -> bytes:
    start, end = _two_places(content, rng)
    return content[:end] + content[start:]


def _insert(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content) + 1)
    telling = rng.choice((b'"', b"\\", b"[", b"{", b"}", b"]", b",", b":", b"\xc2\x85", b"\n", b"\xff"))
    return content[:place] + rng.choice((rng.randbytes(1), telling)) + content[place:]


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 5)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _repeat_key(content: bytes, rng: random.Random) -> bytes:
    places = [place for place, byte in enumerate(content) if byte == ord("{")]
    place = rng.choice(places) + 1 if places else 0
    return (
        content[:place]
        + rng.choice((b'"id": "7", ', b'"id": null, ', b'"golds": [], ', b'"110": 0, '))
        + content[place:]
    )


def _encode(content: bytes, rng: random.Random) -> bytes:
    text = content.decode("utf-8", "replace")
    return text.encode(rng.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "utf-8-sig")), "replace")


def _space(content: bytes, rng: random.Random) -> bytes:
    gap = rng.choice((b"\r\n", b"\n", b"\t" * 70, b"\xc2\x85", b"\xc2\xa0", b"\x00", b"\x0c"))
    return content.replace(rng.choice((b", ", b"{", b"[")), rng.choice((b", ", b"{", b"[")) + gap)


_DAMAGES = (_cut, _delete, _double, _insert, _flip, _repeat_key, _encode, _space)


def make_kinds(folder: Path) -> dict[str, Kind]:
    """Every kind of file. The other files that a reader needs are in the folder, undamaged."""
    tasks = {name: find_task(name) for name in ("LaMP-1", "LaMP-2", "LaMP-3", "LaMP-5", "LaMP-7")}
    questions = questions_of_a_task(tasks["LaMP-3"])
    golds = [{"id": one["id"], "output": "4"} for one in questions]
    ranking = {one["id"]: [item["id"] for item in one["profile"]] for one in questions}
    sound = {"questions": questions, "outputs": golds, "ranking": ranking}
    paths = {name: folder / f"{name}.json" for name in sound}
    for name, value in sound.items():
        paths[name].write_text(json.dumps(value))
    kinds = {
        f"questions of {name}": Kind(
            _json(questions_of_a_task(task, golds=name == "LaMP-2")), _question_readers(task, paths), "questions", task
        )
        for name, task in tasks.items()
    }
    outputs = {"read_outputs": read_outputs, "merge": partial(_merge, beside=paths, role="outputs")}
    official = {"task": "LaMP_3", "golds": golds}
    kinds |= {
        "outputs": Kind(_json(official), outputs, "outputs", tasks["LaMP-3"]),
        "outputs, a list": Kind(_json(golds), outputs, "outputs", tasks["LaMP-3"]),
        "ranking": Kind(
            _json(ranking),
            {"RankingFile": _read_ranking, "merge": partial(_merge, beside=paths, role="ranking")},
            "ranking",
        ),
        "scores": Kind(_json({"1": [2.5, 1, 0], "2": []}), {"read_scores": read_scores, "read_json": read_json}),
        "feedback file": Kind(_json({f"1-1{place}": {"mae": 0.5} for place in range(2)}), {"read_feedback": _feedback}),
        "candidates": Kind(_json(_POOL), {"read_candidates": read_candidates}),
    }
    return kinds


_CANDIDATE = {"prompt": "p", "output": "4", "reward": 1.0, "predictors": {"wig": 0.5}}
_POOL = {
    "task": "LaMP-3",
    "metric": "mae",
    "pool": ["none", "bm25"],
    "questions": [{"id": "1", "input": "i", "gold": "4", "candidates": {"none": _CANDIDATE, "bm25": _CANDIDATE}}],
}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _question_readers(task: Task, beside: dict[str, Path]) -> dict[str, Reader]:
    return {
        "read_questions": read_questions,
        "read_questions with task": partial(read_questions, task=task),
        "rank by bm25": partial(_rank, ranker="bm25", task=task),
        "rank by recency": partial(_rank, ranker="recency", task=task),
        "merge": partial(_merge, beside=beside, role="questions"),
    }


def _rank(path: Path, *, ranker: str, task: Task) -> None:
    for chunk in cut_chunks(path):
        rank_chunk(chunk, ranker=ranker, task=task, options=RankOptions(workers=1))


def _merge(path: Path, *, beside: dict[str, Path], role: str) -> None:
    files = beside | {role: path}
    options = Merge(
        questions=str(files["questions"]), outputs=str(files["outputs"]), ranking=str(files["ranking"]), output=""
    )
    run_id = uuid4().hex
    for chunk in cut_chunks(options.questions):
        for merged in merge_chunk(chunk, options=options, run_id=run_id):
            assert not merged.record or parse_record(merged.record)["id"] == merged.question_id


def _read_ranking(path: Path) -> None:
    ranking = RankingFile(path)
    for question_id in ranking:
        assert all(type(item_id) is str for item_id in ranking[question_id])


def _feedback(path: Path) -> None:
    asked = Question("1", "", ({"id": "10"}, {"id": "11"}))
    read_feedback([path], find_task("LaMP-3"), [asked], profile_size=2)


def outcomes(kind: Kind, path: Path) -> Iterator[tuple[str, str]]:
    """Outcome of each reader: `read`, `refused`, or a failure, which begins with `!`."""
    refused: dict[str, bool] = {}
    for name, reader in kind.readers.items():
        yield name, (outcome := _try(reader, path))
        refused[name] = outcome == "refused"
    for task in (None, kind.task) if kind.form else ():
        yield "check", _check(kind, path, task, refused)


def _try(reader: Reader, path: Path) -> str:
    try:
        reader(path)
    except LampError:
        return "refused"
    except Exception:
        return "!" + traceback.format_exc(limit=-4)
    return "read"


def _check(kind: Kind, path: Path, task: Task | None, refused: dict[str, bool]) -> str:
    """Outcome of `lamp check`, which must report errors if a reader refuses a file of the kind that it recognizes."""
    try:
        found = check_file(path, task=task, work=Work(workers=1))
    except Exception:
        return "!" + traceback.format_exc(limit=-4)
    reader = "read_questions with task" if task is not None and kind.form == "questions" else next(iter(refused))
    if refused[reader] and not found.errors and _FORM_OF.get(found.form, found.form) == kind.form:
        return f"!{reader} refuses it, and the check finds {[one['name'] for one in found.findings]}"
    if any(one["name"] == "patched" for one in found.findings) and kind.task != find_task("LaMP-2"):
        return "!a file of another task is patched as LaMP-2's"
    return "errors" if found.errors else "sound"


def fuzz(count: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """The number of each outcome, and the failures, whose files remain in the folder."""
    kinds = make_kinds(folder)
    counts: Counter[str] = Counter()
    failures = []
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        name = rng.choice(list(kinds))
        path = folder / f"outputs-{number}.json"  # a new name each time, because merging caches the last file's golds
        path.write_bytes(damage(kinds[name].content, rng))
        bad = 0
        for reader, outcome in outcomes(kinds[name], path):
            counts[f"{name}, {reader}: {'FAILED' if outcome.startswith('!') else outcome}"] += 1
            if outcome.startswith("!"):
                bad += 1
                failures.append(f"seed {seed}, file {number}, {name}, {reader}: {path}\n{outcome[1:]}")
        if not bad:
            path.unlink()
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(description="Damages files and reads them.")
    parser.add_argument("--count", type=int, default=10_000, help="files to damage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lamp-fuzz-"))
    counts, failures = fuzz(options.count, options.seed, folder)
    print("\n".join(failures))
    for outcome in sorted(counts):
        print(f"{counts[outcome]:7,}  {outcome}")
    print(f"{options.count:,} files, {len(failures)} failures" + (f", kept in {folder}" if failures else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
