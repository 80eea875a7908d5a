"""How questions become examples: which profile items are read, the prompt they make, and its token ids."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from lamp_jax.config import Compatibility, Prompting
from lamp_jax.data.files import Question, check_unique
from lamp_jax.data.sources import QuestionSource
from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import Example
from lamp_jax.retrieval.rankers import RankOptions, find_retriever
from lamp_jax.retrieval.recency import dates_of
from lamp_jax.runs.workers import available_cores
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
    retriever: str,
    workers: int = 1,
) -> Iterator[Prompt]:
    """What a generator reads for each question, in their order; `workers` processes rank, where there is work."""
    prompt_tokenizer = PromptTokenizer(tokenizer)
    length, compatibility = options.prompting.max_length, options.compatibility

    def build(question: Question, items: Sequence[Item]) -> Prompt:
        return build_prompt(
            task, question.input, items, prompt_tokenizer, max_length=length, compatibility=compatibility
        )

    items = retrieved_items(questions, task, options, retriever=retriever, workers=workers)
    # Threads, because nearly all of the time is spent in the tokenizer, which lets others run.
    with ThreadPoolExecutor(available_cores()) as pool:
        yield from pool.map(build, questions, items)


def retrieved_items(
    questions: Sequence[Question], task: Task, options: PromptOptions, *, retriever: str, workers: int = 1
) -> Iterator[Sequence[Item]]:
    """The items that each question's prompt holds, best first, at most `num_retrieved`."""
    count, compatibility = options.prompting.num_retrieved, options.compatibility
    if not count:
        return (() for _ in questions)
    given = RankOptions(
        use_date=options.prompting.use_date, seed=options.seed, workers=workers, compatibility=compatibility
    )
    return find_retriever(retriever).retrieve(questions, task, given, count)


class ExampleMaker:
    """Makes a question's training example, wherever it is sent: an answer has at most `longest_answer` tokens.

    What is wrong with a question, LampError, is returned as well as an example is, because it has to survive the way
    back from another process.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Any,
        options: PromptOptions,
        *,
        retriever: str,
        longest_answer: int,
        name: str = "the questions",
    ):
        self.task, self.options, self.longest_answer = task, options, longest_answer
        self.retriever = retriever
        self.name = name  # of the questions, for errors
        self._tokenizer = PromptTokenizer(tokenizer)

    def __call__(self, question: Question) -> Example | LampError:
        try:
            gold = gold_of(question, self.name)
            (items,) = retrieved_items([question], self.task, self.options, retriever=self.retriever)
        except LampError as error:
            return error
        length, compatibility = self.options.prompting.max_length, self.options.compatibility
        prompt = build_prompt(
            self.task, question.input, items, self._tokenizer, max_length=length, compatibility=compatibility
        )
        return Example(question.id, prompt.tokens, self._shorten(self._tokenizer.ids(gold)))

    def _shorten(self, answer: list[int]) -> list[int]:
        """At most `longest_answer` tokens, the last of them still `</s>`."""
        return [*answer[: self.longest_answer - 1], answer[-1]] if len(answer) > self.longest_answer else answer


def load_examples(
    source: QuestionSource, make: Callable[[Question], Example | LampError], *, workers: int = 0
) -> Iterator[Example]:
    """The example of every question, in order, made ahead of their use by `workers` processes (0: threads of this one).

    Raises LampError, with the id, where no example can be made, and for an id that occurs twice.
    """
    import grain
    from absl import flags

    seen: set[str] = set()
    made = grain.MapDataset.source(source).map(make)  # pyright: ignore[reportArgumentType] (asks for more than it uses)
    if workers:
        if not flags.FLAGS.is_parsed():  # grain reads one of its own, and here is no command line of absl's form
            flags.FLAGS.mark_as_parsed()
        # One thread each: their work is Python, and they are as many as the cores.
        rows = made.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=16))
        rows = rows.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=16))
    else:
        rows = made.to_iter_dataset(grain.ReadOptions(num_threads=available_cores(), prefetch_buffer_size=64))
    for example in rows:
        if isinstance(example, LampError):
            raise example
        check_unique([example.id], seen, "the questions")
        yield example


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
    found: dict[tuple[str, str], Question] = {}
    for question in questions:
        dates = dates_of(question)
        items = [question.profile[place] for place in sorted(range(len(dates)), key=lambda place: dates[place])]
        for place in range(max(len(items) - newest, 0), len(items)):
            item = items[place]
            past = Question(
                id=f"{question.id}/{place}",
                input=task.input_for(str(item[task.source])),
                profile=tuple(items[:place]),
                user_id=question.user_id,
                output=str(item[task.target]),
            )
            known = found.get((question.user, past.input))
            if known is None or len(known.profile) < len(past.profile):
                found[question.user, past.input] = past
    for question in questions:
        found.pop((question.user, question.input), None)
    return list(found.values())
