"""Rows that the library returns: short to look at, and taken by `pandas.DataFrame` as they are."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from lamp_jax.data.files import Question, shorten
from lamp_jax.tasks.comparison import format_table

Row = TypeVar("Row")
_SHOWN = 3


class Rows(list[Row]):
    """A list of dataclasses: `pandas.DataFrame(rows)`, and `datasets.Dataset.from_list(rows.records())`."""

    def __repr__(self) -> str:
        shown = [repr(row) for row in self[:_SHOWN]]
        if len(self) > _SHOWN:
            shown.append(f"... {len(self)} rows")
        return "[" + ",\n ".join(shown) + "]"

    def records(self) -> list[dict[str, Any]]:
        """Each row as a dictionary."""
        return [asdict(row) for row in self]  # pyright: ignore[reportArgumentType] (dataclasses)


@dataclass(frozen=True, slots=True, repr=False)
class RankedQuestion(Question):
    """A question whose profile a retriever has ordered, best item first."""

    scores: tuple[float, ...] = ()
    """Of the profile's items, in its order; reciprocal ranks of retrievers that give no scores."""


@dataclass(frozen=True, slots=True, repr=False)
class QuestionPrompt:
    """What a generator reads for one question."""

    id: str
    """Of the question."""
    user: str
    task: str
    text: str
    tokens: tuple[int, ...]
    """Token ids, `</s>` included."""
    used_items: int
    """Profile items in the prompt."""
    fell_back: bool
    """Whether there were items and no room for any."""

    def __repr__(self) -> str:
        return f"QuestionPrompt({self.id!r}, {self.used_items} items, {len(self.tokens)} tokens, {shorten(self.text)})"


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """A generator's answer to one question."""

    id: str
    """Of the question."""
    text: str
    probabilities: Mapping[str, float] | None = None
    """Of the task's labels, where these were scored: a softmax over the labels alone."""

    def __repr__(self) -> str:
        sure = f", p={self.probabilities[self.text]:.3f}" if self.probabilities is not None else ""
        return f"Answer({self.id!r}, {shorten(self.text)}{sure})"


@dataclass(frozen=True, slots=True, repr=False)
class ItemFeedback:
    """What a generator made of one question with one profile item alone in the prompt."""

    question: str
    """Id."""
    item: str
    """Id."""
    rank: int
    """The item's place in the profile, from 0."""
    output: str | None
    """The answer; None where the gold's likelihood was measured, and nothing generated."""
    reward: float
    """Higher is better."""
    metrics: Mapping[str, float]

    def __repr__(self) -> str:
        output = "" if self.output is None else f", {shorten(self.output)}"
        return f"ItemFeedback({self.question!r}, {self.item!r}, rank {self.rank}, reward {self.reward:.3g}{output})"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One system on all questions, or on those of one group."""

    name: str
    group: str
    """`all`, or one group of questions."""
    metric: str
    n: int
    """Questions."""
    mean: float
    low: float
    """Lower end of the 95 % confidence interval of the mean over questions."""
    high: float
    difference: float | None
    """Mean of this system minus that of the one that it is compared with; None without one."""
    p: float | None
    """Of the two-sided paired test against that system."""


class Comparisons(Rows[Comparison]):
    """The rows of a comparison; shown as a table."""

    against: str | None = None

    def __repr__(self) -> str:
        of_all = [row for row in self if row.group == ALL]
        if not of_all:
            return super().__repr__()
        rows = [
            {
                "retriever": one.name,
                "metric": one.metric,
                "mean": one.mean,
                "low": one.low,
                "high": one.high,
                "tests": {} if self.against is None else {f"p vs {self.against}": one.p},
                "groups": {row.group: row.mean for row in self if row.name == one.name and row.group != ALL},
            }
            for one in of_all
        ]
        return format_table(rows, [])


ALL = "all"
"""The group of all questions."""
