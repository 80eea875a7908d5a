"""Generator examples from questions: retrieved profile items, prompts and token ids."""

from array import array
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
from lamp_jax.tasks.catalog import ProfileItem, Task
from lamp_jax.tasks.prompts import Prompt, PromptTokenizer, build_prompt


class PromptOptions(Protocol):
    """Options of the stages that build prompts, such as `Generate`."""

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
    """Prompts of the questions, in order; ranking uses up to `workers` processes."""
    prompt_tokenizer = PromptTokenizer(tokenizer)
    length, compatibility = options.prompting.max_length, options.compatibility

    def build(question: Question, items: Sequence[ProfileItem]) -> Prompt:
        return build_prompt(
            task, question.input, items, prompt_tokenizer, max_length=length, compatibility=compatibility
        )

    items = retrieved_items(questions, task, options, retriever=retriever, workers=workers)
    # Threads, because the tokenizer takes nearly all of the time and releases the interpreter lock.
    with ThreadPoolExecutor(available_cores()) as pool:
        yield from pool.map(build, questions, items)


def retrieved_items(
    questions: Sequence[Question], task: Task, options: PromptOptions, *, retriever: str, workers: int = 1
) -> Iterator[Sequence[ProfileItem]]:
    """Items of each question's prompt, best first, at most `num_retrieved`."""
    count, compatibility = options.prompting.num_retrieved, options.compatibility
    if not count:
        return (() for _ in questions)
    given = RankOptions(
        use_date=options.prompting.use_date, seed=options.seed, workers=workers, compatibility=compatibility
    )
    return find_retriever(retriever).retrieve(questions, task, given, count)


class ExampleMaker:
    """Picklable function from a question to its training example, whose answer has at most `longest_answer` tokens.

    A LampError about a question is returned rather than raised, because it must survive the transfer from a worker
    process.
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
            reference = reference_of(question, self.name)
            (items,) = retrieved_items([question], self.task, self.options, retriever=self.retriever)
        except LampError as error:
            return error
        length, compatibility = self.options.prompting.max_length, self.options.compatibility
        prompt = build_prompt(
            self.task, question.input, items, self._tokenizer, max_length=length, compatibility=compatibility
        )
        return Example(question.id, prompt.tokens, self._shorten(self._tokenizer.ids(reference)))

    def _shorten(self, answer: list[int]) -> list[int]:
        """Answer cut to `longest_answer` tokens, of which the last is still `</s>`."""
        return [*answer[: self.longest_answer - 1], answer[-1]] if len(answer) > self.longest_answer else answer


def load_examples(
    source: QuestionSource, make: Callable[[Question], Example | LampError], *, workers: int = 0
) -> Iterator[Example]:
    """Examples of all questions, in order, prefetched by `workers` processes (0: threads of this one).

    Raises LampError, with the id, where no example can be made, and for a duplicate id.
    """
    import grain
    from absl import flags

    seen: set[str] = set()
    made = grain.MapDataset.source(source).map(make)  # pyright: ignore[reportArgumentType] (asks for more than it uses)
    if workers:
        if not flags.FLAGS.is_parsed():  # grain reads an absl flag, and this command line is not parsed by absl
            flags.FLAGS.mark_as_parsed()
        # One thread each: the work is Python code, and there is one process per core.
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
    """Inference examples: prompts without answers."""
    pairs = zip(questions, prompts, strict=True)
    return [Example(question.id, array("i", prompt.tokens)) for question, prompt in pairs]  # four bytes per token


def reference_of(question: Question, path: str = "the questions") -> str:
    """Reference of a question. LampError with the remedy where it has none."""
    if question.output is None:
        remedy = "add the references with `lamp merge --outputs`, or `read_questions(..., golds=...)` in Python"
        raise LampError(f"{path}: question {question.id!r} has no reference; {remedy}")
    return question.output


def past_questions(questions: Iterable[Question], task: Task, *, newest: int) -> list[Question]:
    """Newest profile items of each question as questions of the same user, each with only the items before it.

    An item in several questions of a user, or equal to one of the questions, gives no second question. Dates
    determine the order; items of equal date keep the profile's order. LampError where the task's profile items are no
    examples of the task (LaMP-1, LaMP-7) or have no date.
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
