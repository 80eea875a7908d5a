"""`lamp selector-data`: selector candidates from feedback on retrievers."""

from collections.abc import Mapping, Sequence
from typing import Any

from lamp_jax.artifacts.feedback import read_retriever_feedback, read_settings
from lamp_jax.artifacts.selector import Candidate, CandidateSet, QuestionCandidates, write_candidates
from lamp_jax.config import Work
from lamp_jax.data.chunks import stream_first_items
from lamp_jax.data.files import Question, add_outputs, read_outputs
from lamp_jax.errors import LampError
from lamp_jax.options.selector import SelectorData
from lamp_jax.retrieval.ranking import read_scores
from lamp_jax.retrieval.selector import predict_success
from lamp_jax.retrieval.texts import query_of
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.tasks.catalog import Task, find_task
from lamp_jax.tasks.metrics import main_metric
from lamp_jax.tasks.rewards import reward_of


@guard_outputs
def run(options: SelectorData) -> None:
    if options.predictor_items < 1:
        raise LampError(f"--predictor-items {options.predictor_items}: must be 1 or more")
    files = {name: file for name, _, file in (entry.partition("=") for entry in options.scores)}
    inputs = [options.feedback, options.questions, *filter(None, [options.golds]), *files.values()]
    record = reserve(options.output, options, inputs=inputs)
    if record.state == "done":
        return print(f"{options.output}: already made")
    task = find_task(read_settings(options.feedback, "retrievers")["task"])
    questions = list(
        stream_first_items(options.questions, 0, task=None, patches=options.compatibility.patches, work=Work())
    )
    if options.golds:
        questions = add_outputs(
            questions, read_outputs(options.golds).by_id, left=options.questions, right=options.golds
        )
    data = make_candidate_set(options, task, questions, _read_scores(files, questions, options.questions))
    record.begin()
    write_candidates(record.target, data)
    record.finish(questions=len(data.questions), rewarded=data.rewarded)
    rewards = f"rewards: {data.metric}" if data.rewarded else "no rewards, because references are missing"
    print(f"{options.output}: {len(data.questions)} questions, {len(data.names)} candidates each; {rewards}")


def make_candidate_set(
    options: SelectorData,
    task: Task,
    questions: Sequence[Question],
    scores: Mapping[str, Mapping[str, Sequence[float]]],
) -> CandidateSet:
    """Questions with a candidate of every retriever; `scores` are those of rankings, by retriever and question."""
    names, records = read_retriever_feedback(options.feedback, task, questions)
    unknown = [name for name in scores if name not in names]
    if unknown:
        raise LampError(f"--scores {', '.join(unknown)}: not in the feedback's pool of {', '.join(names)}")

    def predictors(question: Question, name: str) -> dict[str, float]:
        if name not in scores:
            return {}
        words = len(query_of(question, task, compatibility=options.compatibility).split())
        return predict_success(scores[name][question.id], words=words, items=options.predictor_items)

    found = []
    for question in questions:
        candidates = {}
        for name in names:
            record = records[question.id][name]
            reward = _reward(options, task, question, record)
            candidates[name] = Candidate(record["prompt"], record["output"], reward, predictors(question, name))
        found.append(QuestionCandidates(question.id, question.input, question.output, candidates))
    return CandidateSet(task, options.metric or main_metric(task).lower(), tuple(names), found)


def _reward(options: SelectorData, task: Task, question: Question, record: Mapping[str, Any]) -> float | None:
    if question.output is None:
        return None
    where = f"{options.feedback}, question {question.id!r}, retriever {record['retriever']!r}"
    if not record["metrics"]:
        raise LampError(
            f"{where}: has no metrics, because references were missing; collect it on questions with references"
        )
    try:
        return reward_of(task, record["metrics"], question.output, metric=options.metric or main_metric(task))
    except LampError as error:
        raise LampError(f"{where}: {error}") from error


def _read_scores(
    files: Mapping[str, str], questions: Sequence[Question], path: str
) -> dict[str, dict[str, list[float]]]:
    scores = {}
    for name, file in files.items():
        if not file:
            raise LampError(f"--scores {name}: give NAME=FILE, the scores of that retriever's ranking")
        scores[name] = read_scores(file)
        missing = [question.id for question in questions if question.id not in scores[name]]
        if missing:
            raise LampError(f"{file}: no scores of {len(missing)} questions of {path} ({', '.join(missing[:5])})")
    return scores
