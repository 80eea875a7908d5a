"""Table of LaMP tasks: one row per task with every difference between tasks, read by all other code.

Sources: LaMP (arXiv 2304.11406) and Table 2 of ROPG/RSPG (arXiv 2404.05970) for templates, fields and metrics; the
public code of arXiv 2409.09510 for training examples from profile items.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from lamp_jax.config import Split
from lamp_jax.errors import LampError

ProfileItem = Mapping[str, Any]
Metric = Literal["accuracy", "mae", "rouge-1"]
Value = TypeVar("Value")
QuestionCounts = tuple[int | None, int | None, int | None]  # of train, dev and test; None where not published

MOVIE_TAGS = (
    "sci-fi", "based on a book", "comedy", "action", "twist ending", "dystopia", "dark comedy", "classic",
    "psychology", "fantasy", "romance", "thought-provoking", "social commentary", "violence", "true story",
)  # fmt: skip
NEWS_CATEGORIES = (
    "women", "religion", "politics", "style & beauty", "entertainment", "culture & arts", "sports",
    "science & technology", "travel", "business", "crime", "education", "healthy living", "parents", "food & drink",
)  # fmt: skip


class BySplit(NamedTuple, Generic[Value]):
    """Values for the user-based and the time-based split."""

    user: Value
    time: Value

    def of(self, split: Split) -> Value:
        return self.time if split == "time" else self.user


_NOT_PUBLISHED: BySplit[QuestionCounts] = BySplit((None, None, None), (None, None, None))
_BM25 = BySplit("bm25", "bm25")


class MissingMarker(LampError):  # noqa: N818 (it names the error in the input)
    """Input that does not have its task's format, so that it contains no query.

    `text` is what it lacks.
    """

    def __init__(self, text: str, message: str):
        super().__init__(message)
        self.text = text


@dataclass(frozen=True)
class ItemPhrase:
    """Text of one profile item in a prompt.

    `template` is a format string over the item's fields; `cut` names the field that is shortened to fit the budget.
    `measured` is the template as the public code counts it, with a space for the cut text; an integer is a constant
    count of tokens. `paper_template` is that of the ROPG paper's Table 2, where the public code's is different.
    """

    template: str
    cut: str
    measured: str | int
    paper_template: str | None = None

    def wording(self, variant: Literal["a title", "the title"]) -> str:
        """Template of the public code ("a title") or of the paper ("the title"); most tasks have only one."""
        return self.paper_template if variant == "the title" and self.paper_template is not None else self.template


@dataclass(frozen=True)
class PromptForm:
    """Combination of profile items and input in one prompt.

    `separator` is the text between the items and the input, `separator_measured` the text that the public code counts
    for it besides one token ("" where it counts only that token, None where it counts nothing). `after`, if set, is the
    word of the input after which the items are inserted; otherwise they precede the input.
    """

    item: ItemPhrase
    separator: str = ". "
    separator_measured: str | None = ""
    after: str | None = None

    def separator_cost(self, measured: int) -> int:
        """Tokens that the public code counts for the separator, if its measured text has `measured` tokens."""
        if self.separator_measured is None:
            return 0
        return 1 + measured if self.separator_measured else 1


@dataclass(frozen=True)
class Practice:
    """Template of a training example from a profile item, where it differs from the task's own input.

    `template` is a format string over the item's fields. `given`, if set, is the least and the largest share of the
    target's words that the template contains as {start}; the answer is the rest.
    """

    template: str
    given: tuple[float, float] | None = None


@dataclass(frozen=True)
class Task:
    """Row of the table. `name` is written as `LaMP-3`, in official files `LaMP_3`; new tasks may have any name."""

    name: str
    template: str  # the input, over the fields of an example: {text}, or {title}, {ref1}, {ref2}
    marker: str  # the query follows the marker's first occurrence in the input
    document: tuple[str, ...]  # fields of a profile item, joined by a space, that a retriever reads
    target: str  # field of a profile item that answers the template put to that item
    source: str  # field of a profile item that takes the template's {text}
    prompt: PromptForm
    metric: Metric
    labels: tuple[str, ...] = ()
    id_prefix: str = ""  # first characters of question ids in generated files; published ids of LaMP-3 begin with 2
    folder: str = ""  # folder of its files on the benchmark's site; "" for a task without files there
    counts: BySplit[QuestionCounts] = _NOT_PUBLISHED  # number of questions of each part
    best: BySplit[str] = _BM25  # best ranker in the papers
    practice: Practice | None = None  # form of training examples from items; None: the template
    deprecated: bool = False

    @property
    def official_name(self) -> str:
        """Name in official files; those of the deprecated news task also have `LaMP_2`."""
        return self.name.removesuffix("-old").replace("-", "_")

    @property
    def tree_folder(self) -> str:
        """Folder of its files in a tree: as on the benchmark's site, or by its name."""
        return self.folder or self.official_name

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Fields that every profile item must have, besides `id`."""
        used = (*self.document, self.target, self.source, *re.findall(r"{(\w+)}", self.prompt.item.template))
        return tuple(dict.fromkeys(used))

    @property
    def cites(self) -> bool:
        """Whether the task asks which of two references is cited."""
        return "{ref1}" in self.template

    @property
    def higher_is_better(self) -> bool:
        return self.metric != "mae"

    def input_for(self, text: str) -> str:
        """Input of the task for `text`. Not for LaMP-1, whose template takes three titles."""
        return self.template.format(text=text)

    def practice_for(self, item: ProfileItem, start: str = "") -> str:
        """Input of the training example from `item` (arXiv 2409.09510); the answer is the field `target`.

        Where the practice gives the target's first words, `start`, the answer is the rest.
        """
        if self.practice is None:
            return self.input_for(str(item[self.source]))
        return self.practice.template.format_map({**item, "start": start})

    def query(self, question: str, *, reference: bool = False) -> str:
        """Query of an input, the part that a retriever reads.

        `reference` reads LaMP-1's two references as the public code does, by counting quotation marks.
        Raises MissingMarker where the input does not have the task's format.
        """
        if self.cites:
            query, text = _references(question, self.marker, by_quotes=reference), f'{self.marker}..." [2]: "..."'
        else:
            _, found, rest = question.partition(self.marker)
            query, text = rest.removeprefix(" ") if found else None, repr(self.marker)
        if query is None:
            raise MissingMarker(text, f"{self.name}: the input has no {text}: {question[:80]!r}")
        return query

    def instruction(self, question: str) -> str:
        """Text before the query in an input, marker included; "" where the marker is missing."""
        before, found, _ = question.partition(self.marker)
        return before + found if found else ""

    def document_of(self, item: ProfileItem, *, use_date: bool = False) -> str:
        """Document of a profile item, which a retriever reads; with `use_date` followed by ` date: ...`."""
        return self.documents_of([item], use_date=use_date)[0]

    def documents_of(self, items: Sequence[ProfileItem], *, use_date: bool = False) -> list[str]:
        """Document of each profile item."""
        texts = map(" ".join, zip(*[[str(item[field]) for item in items] for field in self.document], strict=True))
        if use_date:
            return [f"{text} date: {item['date']}" for text, item in zip(texts, items, strict=True)]
        return list(texts)


_REFERENCES = re.compile(r'(.*?)" \[2\]: "(.*)"\s*', re.DOTALL)


def _references(question: str, marker: str, *, by_quotes: bool) -> str | None:
    if by_quotes:
        quoted = question.split('"')[1:-1:2]  # Without a string that is never closed.
        if len(quoted) >= 3:
            return f"{quoted[1]} {quoted[2]}"
    else:
        _, _, references = question.partition(marker)
        match = _REFERENCES.fullmatch(references)
        if match:
            return f"{match[1]} {match[2]}"
    return None


_PATTERNS = "Following the given patterns"
_TITLED = ItemPhrase('"{title}" is the title for "{text}" ', cut="text", measured='"{title}" is the title for " " ')

_ROWS = (
    Task(
        name="LaMP-1",
        template='For an author who has written the paper with the title "{title}", which reference is related? '
        'Just answer with [1] or [2] without explanation. [1]: "{ref1}" [2]: "{ref2}"',
        marker='explanation. [1]: "',  # A title may hold `[1]: "` as well.
        document=("title", "abstract"),
        source="title",
        target="abstract",
        prompt=PromptForm(
            ItemPhrase('"{title}"', cut="title", measured=2), separator="", separator_measured=None, after="title"
        ),
        metric="accuracy",
        id_prefix="0",
        folder="LaMP_1",
        counts=BySplit(user=(9682, 2500, 2500), time=(6542, 1500, 1500)),
        best=BySplit(user="dense", time="dense"),
        labels=("[1]", "[2]"),
        practice=Practice("Write an abstract for this title: {title}"),
    ),
    Task(
        name="LaMP-2",
        template="Which tag does this movie relate to among the following tags? Just answer with the tag name without "
        f"further explanation. tags: [{', '.join(MOVIE_TAGS)}] description: {{text}}",
        marker="description:",
        document=("description",),
        source="description",
        target="tag",
        prompt=PromptForm(
            ItemPhrase(
                'the tag for the movie: "{description}" is "{tag}" ',
                cut="description",
                measured='the tag for the movie: " " is "{tag}" ',
            )
        ),
        metric="accuracy",
        id_prefix="1",
        folder="LaMP_2/new",
        counts=BySplit(user=(3820, 692, None), time=(5073, 1410, 1557)),
        best=BySplit(user="dense", time="dense"),
        labels=MOVIE_TAGS,
    ),
    Task(
        name="LaMP-2-old",
        template="Which category does this article relate to among the following categories? Just answer with the "
        f"category name without further explanation. categories: [{', '.join(NEWS_CATEGORIES)}] article: {{text}}",
        marker="article:",
        document=("title", "text"),
        source="text",
        target="category",
        prompt=PromptForm(
            ItemPhrase(
                'the category for the article: "{text}" is "{category}" ',
                cut="text",
                measured='the category for the article: " " is "{category}" ',
            )
        ),
        metric="accuracy",
        id_prefix="1",
        folder="LaMP_2",
        counts=BySplit(user=(5914, 1052, 1274), time=(None, None, None)),
        best=BySplit(user="dense", time="dense"),
        labels=NEWS_CATEGORIES,
        deprecated=True,
    ),
    Task(
        name="LaMP-3",
        template="What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 "
        "without further explanation. review: {text}",
        marker="review:",
        document=("text",),
        source="text",
        target="score",
        prompt=PromptForm(
            ItemPhrase('{score} is the score for "{text}" ', cut="text", measured='{score} is the score for " " ')
        ),
        metric="mae",
        id_prefix="2",
        folder="LaMP_3",
        counts=BySplit(user=(20000, 2500, 2500), time=(20000, 2500, 2500)),
        best=BySplit(user="dense", time="recency"),
        labels=("1", "2", "3", "4", "5"),
    ),
    Task(
        name="LaMP-4",
        template="Generate a headline for the following article: {text}",
        marker="article:",
        document=("title", "text"),
        source="text",
        target="title",
        prompt=PromptForm(_TITLED),
        metric="rouge-1",
        id_prefix="3",
        folder="LaMP_4",
        counts=BySplit(user=(12527, 1925, 2376), time=(12500, 1500, 1800)),
        best=BySplit(user="dense", time="recency"),
    ),
    Task(
        name="LaMP-5",
        template="Generate a title for the following abstract of a paper: {text}",
        marker=":",
        document=("title", "abstract"),
        source="abstract",
        target="title",
        prompt=PromptForm(
            ItemPhrase(
                '"{title}" is a title for "{abstract}" ',
                cut="abstract",
                measured='"{title}" is a title " " ',
                paper_template='"{title}" is the title for "{abstract}" ',
            ),
            separator=f". {_PATTERNS} ",
            separator_measured=_PATTERNS,
        ),
        metric="rouge-1",
        id_prefix="4",
        folder="LaMP_5",
        counts=BySplit(user=(9682, 2500, 2500), time=(14682, 1500, 1500)),
        best=BySplit(user="bm25", time="dense"),
    ),
    Task(
        name="LaMP-6",
        template="Generate a subject for the following email: {text}",
        marker=":",
        document=("text",),
        source="text",
        target="title",
        prompt=PromptForm(_TITLED),
        metric="rouge-1",
        id_prefix="5",
        folder="LaMP_6",
        counts=BySplit(user=(4840, 1353, 1246), time=(4821, 1250, 1250)),
        best=BySplit(user="bm25", time="dense"),
    ),
    Task(
        name="LaMP-7",
        template="Paraphrase the following tweet without any explanation before or after it: {text}",
        marker=":",
        document=("text",),
        source="text",
        target="text",
        prompt=PromptForm(
            ItemPhrase('"{text}" ', cut="text", measured='" '),
            separator=f" are written by a person. {_PATTERNS} ",
            separator_measured=f"are written by user. {_PATTERNS}",
        ),
        metric="rouge-1",
        id_prefix="6",
        folder="LaMP_7",
        counts=BySplit(user=(10437, 1500, 1496), time=(13437, 1498, 1500)),
        best=BySplit(user="dense", time="dense"),
        practice=Practice("Complete the following tweet: {start}", given=(0.1, 0.25)),
    ),
)
TASKS = {task.name: task for task in _ROWS}


def find_task(name: str | Task) -> Task:
    """Task called `name`; `LaMP-3`, `LaMP_3` and `lamp_3` are equal. Raises LampError, with all names, for others.

    A `Task`, which need not be in the table, is returned unchanged.
    """
    if isinstance(name, Task):
        return name
    wanted = _spelled_alike(name)
    for task in TASKS.values():
        if _spelled_alike(task.name) == wanted:
            return task
    raise LampError(f"unknown task {name!r}: choose one of {', '.join(TASKS)}")


def last_named(text: str) -> list[Task]:
    """Tasks whose name, in official files or in the table, is the last in a text; [] for no name."""
    places: dict[int, list[Task]] = {}
    for task in TASKS.values():
        # `LaMP_1` is not in `LaMP_12`, nor `Recipe` in `Recipes`.
        longer = r"\d" if task.official_name[-1].isdigit() else r"[^\W\d_]"
        pattern = re.escape(task.official_name.replace("_", "-")).replace(r"\-", "[_-]") + f"(?!{longer})"
        for match in re.finditer(pattern, text):
            places.setdefault(match.start(), []).append(task)
    return places[max(places)] if places else []


def _spelled_alike(name: str) -> str:
    return name.lower().replace("_", "-")
