"""Prompts: byte-identical to those of the public code."""

import gzip
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from lamp_jax.config import REFERENCE
from lamp_jax.data.files import Question
from lamp_jax.retrieval.recency import dense_and_newest
from lamp_jax.tasks.catalog import find_task
from lamp_jax.tasks.prompts import PromptTokenizer, build_prompt
from tests.goldens import cases

NOT_BUILT = {
    ("recency_contriever", False): "the public code ranks by itself here; its two halves are read from a ranked file",
    ("random", False): "needs the reference's own draws",
}


@cache
def load_tokenizer(name: str) -> PromptTokenizer:
    from transformers import AutoTokenizer

    return PromptTokenizer(AutoTokenizer.from_pretrained(cases.CASES / name))


def read_prompts(file: str) -> dict[str, str]:
    text = gzip.decompress((cases.CASES / "goldens/prompts" / file).read_bytes()).decode("utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    return {row["id"]: row["prompt"] for row in rows}


def read_items(case: dict[str, Any]) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """Profile items of a question in the case's prompts, best first."""
    profile_of, count = read_profiles(case), case["num_retrieve"]
    if case["ret_type"] != "recency_contriever":
        return lambda question: profile_of(question)[:count]

    def halves(question: dict[str, Any]) -> list[dict[str, Any]]:
        ordered = Question(question["id"], question["input"], tuple(profile_of(question)))
        return [dict(item) for item in dense_and_newest(ordered, count, halves=REFERENCE.halves)]

    return halves


def read_profiles(case: dict[str, Any]) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """Function that orders a question's profile as the case does, best first."""
    task, split, ranking = cases.parse_source(case["source"])
    retriever = case["ret_type"]
    if (retriever, case["is_ranked"]) in NOT_BUILT:
        pytest.skip(f"{retriever}: {NOT_BUILT[retriever, case['is_ranked']]}")
    if not case["is_ranked"] and retriever == "recency":
        return cases.order_by_date
    if not case["is_ranked"]:
        ranking = retriever
    if ranking == "none":
        return lambda question: question["profile"]
    if not cases.has_ranking(task, split, ranking):
        pytest.skip(f"goldens/rank has no rank_{task}_{split}_{ranking}.json")
    ranked = cases.read_ranking(task, split, ranking)
    return lambda question: cases.order_profile(question, ranked[question["id"]])


@pytest.mark.golden
@pytest.mark.parametrize("case", cases.read_index("prompts"), ids=lambda case: f"prompts-{case['file']}")
def test_prompts_equal_the_public_codes(case):
    items_of = read_items(case)
    task, tokenizer = find_task(case["task"]), load_tokenizer(case["tokenizer"])
    questions = {question["id"]: question for question in cases.read_questions(*cases.parse_source(case["source"])[:2])}
    goldens = read_prompts(case["file"])
    prompts = {
        question_id: build_prompt(
            task,
            questions[question_id]["input"],
            items_of(questions[question_id]),
            tokenizer,
            max_length=case["max_length"],
            compatibility=REFERENCE,
        )
        for question_id in goldens
    }
    assert {question_id: prompt.text for question_id, prompt in prompts.items()} == goldens
    assert len(goldens) == case["n"]
    assert sum(prompt.fell_back for prompt in prompts.values()) == case["fell_back_to_input"]
