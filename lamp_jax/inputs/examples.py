"""How questions become examples: which profile items are read, the prompt they make, and its token ids."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

from lamp_jax.config import Compatibility, Prompting, Retriever
from lamp_jax.data.files import Question
from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import Example
from lamp_jax.retrieval.bm25 import available_cores
from lamp_jax.retrieval.ranking import RANKERS, RankOptions, apply_ranking
from lamp_jax.retrieval.recency import dates_of
from lamp_jax.tasks.catalog import Item, Task
from lamp_jax.tasks.prompts import Prompt, PromptTokenizer, build_prompt


class PromptOptions(Protocol):
    """What the stages that build prompts are told, `Generate` for one."""

    @property
    def prompting(self) -> Prompting: ...
    @property
    def seed(self) -> int: ...
    @property
    def compatibility(self) -> Compatibility: ...


def make_prompts(
    questions: Sequence[Question],
    task: Task,
    tokenizer: Any,
    options: PromptOptions,
    *,
    retriever: Retriever,
) -> Iterator[Prompt]:
    """What a generator reads for each question, in their order."""
    prompt_tokenizer = PromptTokenizer(tokenizer)
    length, compatibility = options.prompting.max_length, options.compatibility

    def build(question: Question, items: Sequence[Item]) -> Prompt:
        return build_prompt(
            task, question.input, items, prompt_tokenizer, max_length=length, compatibility=compatibility
        )

    # Threads, because nearly all of the time is spent in the tokenizer, which lets others run.
    with ThreadPoolExecutor(available_cores()) as pool:
        yield from pool.map(build, questions, retrieved_items(questions, task, options, retriever=retriever))


def retrieved_items(
    questions: Sequence[Question], task: Task, options: PromptOptions, *, retriever: Retriever
) -> Iterator[Sequence[Item]]:
    """The items that each question's prompt holds, best first, at most `num_retrieved`."""
    count = 0 if retriever == "none" else options.prompting.num_retrieved
    if count == 0 or retriever == "file":
        yield from (question.profile[:count] for question in questions)
        return
    if retriever == "recency+dense":
        yield from (dense_and_newest(question, count, halves=options.compatibility.halves) for question in questions)
        return
    told = RankOptions(use_date=options.prompting.use_date, seed=options.seed, compatibility=options.compatibility)
    for question, ranked in zip(questions, RANKERS[retriever](questions, task, told), strict=True):
        yield apply_ranking(question, ranked.item_ids).profile[:count]


def dense_and_newest(question: Question, count: int, *, halves: Literal["distinct", "doubled"]) -> list[Item]:
    """`count` items of a profile in dense order: the first half of them (rounded up), then the newest of the others.

    `halves="doubled"` gives what the public code gives: count // 2 of both kinds, whatever they share. Raises
    LampError as dates_of.
    """
    profile, dates = question.profile, dates_of(question)
    if halves == "doubled":
        oldest_first = sorted(range(len(profile)), key=lambda place: dates[place])
        newest = oldest_first[-(count // 2) :][::-1]
        return [*profile[: count // 2], *(profile[place] for place in newest)]
    half = (count + 1) // 2
    newest_first = sorted(range(half, len(profile)), key=lambda place: dates[place], reverse=True)
    return [*profile[:half], *(profile[place] for place in newest_first[: count - half])]


def make_examples(
    questions: Sequence[Question],
    prompts: Iterable[Prompt],
    tokenizer: Any,
    *,
    longest_answer: int,
) -> list[Example]:
    """Prompts with their golds, of at most `longest_answer` tokens (`</s>` included)."""
    golds = [gold_of(question) for question in questions]
    answers = tokenizer(golds, truncation=True, max_length=longest_answer).input_ids
    rows = zip(questions, prompts, answers, strict=True)
    return [Example(question.id, prompt.tokens, answer) for question, prompt, answer in rows]


def prompt_examples(questions: Iterable[Question], prompts: Iterable[Prompt]) -> list[Example]:
    """Prompts alone, for inference."""
    return [Example(question.id, prompt.tokens) for question, prompt in zip(questions, prompts, strict=True)]


def gold_of(question: Question, path: str = "the questions") -> str:
    """A question's gold. LampError with the remedy where it has none."""
    if question.output is None:
        raise LampError(f"{path}: question {question.id!r} has no gold; add the golds with `lamp merge --outputs`")
    return question.output


def past_questions(questions: Iterable[Question], task: Task, *, newest: int) -> list[Question]:
    """The newest profile items of each question as questions of the same user, each with the items before it alone.

    An item that several of a user's questions hold, or that is itself one of them, gives no second question. Dates
    decide what is before; items of one date stand in the profile's order. LampError where the task's profile items
    are no examples of the task (LaMP-1, LaMP-7) or have no date.
    """
    if "{text}" not in task.template or task.source == task.target:
        raise LampError(f"{task.name}: its profile items are not examples of the task, so they cannot be train targets")
    questions = list(questions)
    found: dict[tuple[Any, str], Question] = {}
    for question in questions:
        user = question.id if question.user_id is None else question.user_id
        dates = dates_of(question)
        items = [question.profile[place] for place in sorted(range(len(dates)), key=lambda place: dates[place])]
        for place in range(max(len(items) - newest, 0), len(items)):
            item = items[place]
            past = Question(
                id=f"{question.id}/{item['id']}",
                input=task.input_for(str(item[task.source])),
                profile=tuple(items[:place]),
                user_id=question.user_id,
                output=str(item[task.target]),
            )
            known = found.get((user, past.input))
            if known is None or len(known.profile) < len(past.profile):
                found[user, past.input] = past
    for question in questions:
        found.pop((question.id if question.user_id is None else question.user_id, question.input), None)
    return list(found.values())
