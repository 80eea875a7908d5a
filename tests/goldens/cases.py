"""Location of the golden cases, and readers of their questions and rankings."""

import json
import os
import re
from pathlib import Path
from typing import Any

CASES = Path(os.environ.get("LAMP_CASES", Path(__file__).parents[1] / "cases"))
_SOURCE = re.compile(r"(?:.*/)?merged_(?P<task>.+)_(?P<split>train|dev|test)_(?P<ranking>.+)\.json")


def read_json(path: str) -> Any:
    """A JSON file under CASES."""
    return json.loads((CASES / path).read_text(encoding="utf-8"))


def read_index(folder: str) -> list[dict[str, Any]]:
    """Cases listed in `goldens/FOLDER/index.json`; empty without such a file."""
    path = f"goldens/{folder}/index.json"
    return read_json(path) if (CASES / path).exists() else []


def read_questions(task: str, split: str) -> list[dict[str, Any]]:
    """The synthetic questions of task "1" to "7"."""
    return read_json(f"synth/LaMP_{task}/{split}_questions.json")


def read_outputs(task: str, split: str) -> dict[str, str]:
    """{question id: gold}."""
    return {gold["id"]: gold["output"] for gold in read_json(f"synth/LaMP_{task}/{split}_outputs.json")["golds"]}


def has_ranking(task: str, split: str, ranking: str) -> bool:
    return (CASES / f"goldens/rank/rank_{task}_{split}_{ranking}.json").exists()


def read_ranking(task: str, split: str, ranking: str) -> dict[str, list[str]]:
    """{question id: [item id, ...]}, best first."""
    return read_json(f"goldens/rank/rank_{task}_{split}_{ranking}.json")


def parse_source(source: str) -> tuple[str, str, str]:
    """Task, split and ranking of a source such as `merged/merged_3_dev_bm25.json`."""
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise ValueError(f"not a merged file's name: {source}")
    return match["task"], match["split"], match["ranking"]


def order_profile(question: dict[str, Any], item_ids: list[str]) -> list[dict[str, Any]]:
    """The profile items with these ids, in their order."""
    items = {item["id"]: item for item in question["profile"]}
    return [items[item_id] for item_id in item_ids]


def order_by_date(question: dict[str, Any]) -> list[dict[str, Any]]:
    """The profile, newest first; of equal dates, the later item first."""
    return sorted(question["profile"], key=lambda item: [int(part) for part in str(item["date"]).split("-")])[::-1]


def read_merged(source: str) -> list[dict[str, Any]]:
    """Questions of a merged file, with their golds as `output`, profiles in the ranking's order (`none`: unchanged)."""
    task, split, ranking = parse_source(source)
    golds = read_outputs(task, split)
    questions = [{**question, "output": golds[question["id"]]} for question in read_questions(task, split)]
    if ranking == "none":
        return questions
    ranked = read_ranking(task, split, ranking)
    return [{**question, "profile": order_profile(question, ranked[question["id"]])} for question in questions]
