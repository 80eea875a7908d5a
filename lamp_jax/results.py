"""Result rows of the library: dataclasses with a short repr, accepted by `pandas.DataFrame`."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, SupportsIndex, TypeVar, overload

from lamp_jax.data.files import Question, shorten
from lamp_jax.errors import LampError
from lamp_jax.tasks.comparison import format_table

Row = TypeVar("Row")
_SHOWN = 3


class Rows(list[Row]):
    """List of dataclasses: `pandas.DataFrame(rows)`, and `datasets.Dataset.from_list(rows.records())`."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows[Row]": ...
    def __getitem__(self, index: Any) -> Any:
        chosen = super().__getitem__(index)
        return Rows(chosen) if isinstance(index, slice) else chosen

    def __repr__(self) -> str:
        shown = [repr(row) for row in self[:_SHOWN]]
        if len(self) > _SHOWN:
            shown.append(f"... {len(self)} rows")
        return "[" + ",\n ".join(shown) + "]"

    def records(self) -> list[dict[str, Any]]:
        """Rows as dictionaries."""
        return [asdict(row) for row in self]  # pyright: ignore[reportArgumentType] (dataclasses)


def as_list(kind: type[Row], rows: Iterable[Row], name: str) -> list[Row]:
    """List of the rows. LampError, saying what was expected of the argument `name`, unless each is a `kind`."""
    if isinstance(rows, kind) or not isinstance(rows, Iterable):
        one = "one " * isinstance(rows, kind)
        raise LampError(f"{name}: expected a list of {kind.__name__}, found {one}{type(rows).__name__}")
    found = list(rows)
    for position, row in enumerate(found):
        if not isinstance(row, kind):
            made_by = "; `read_questions` makes them from records" if issubclass(kind, Question) else ""
            raise LampError(f"{name}[{position}]: expected {kind.__name__}, found {type(row).__name__}{made_by}")
    return found


@dataclass(frozen=True, slots=True, repr=False)
class RankedQuestion(Question):
    """Question with its profile ranked by a retriever, best item first."""

    scores: tuple[float, ...] = ()
    """Scores of the profile's items, in its order; reciprocal ranks for retrievers without scores."""


@dataclass(frozen=True, slots=True, repr=False)
class QuestionPrompt:
    """Input of a generator for one question."""

    id: str
    """Id of the question."""
    user: str
    task: str
    text: str
    tokens: tuple[int, ...]
    """Token ids, `</s>` included."""
    used_items: int
    """Number of profile items in the prompt."""
    fell_back: bool
    """Whether the prompt has no item because none fits."""

    def __repr__(self) -> str:
        return f"QuestionPrompt({self.id!r}, {self.used_items} items, {len(self.tokens)} tokens, {shorten(self.text)})"


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """Answer of a generator to one question."""

    id: str
    """Id of the question."""
    text: str
    probabilities: Mapping[str, float] | None = None
    """Probabilities of the task's labels, where these were scored: a softmax over the labels alone."""

    def __repr__(self) -> str:
        sure = f", p={self.probabilities[self.text]:.3f}" if self.probabilities is not None else ""
        return f"Answer({self.id!r}, {shorten(self.text)}{sure})"


@dataclass(frozen=True, slots=True, repr=False)
class ItemFeedback:
    """Feedback of a generator on one question with a single profile item in the prompt."""

    question: str
    """Id of the question."""
    item: str
    """Id of the profile item."""
    rank: int
    """Position of the item in the profile, from 0."""
    output: str | None
    """Answer; None where the likelihood of the reference was measured instead."""
    reward: float
    """Reward; higher is better."""
    metrics: Mapping[str, float]

    def __repr__(self) -> str:
        output = "" if self.output is None else f", {shorten(self.output)}"
        return f"ItemFeedback({self.question!r}, {self.item!r}, rank {self.rank}, reward {self.reward:.3g}{output})"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Result of one system on all questions, or on those of one group."""

    name: str
    group: str
    """`all`, or the name of a group of questions."""
    metric: str
    n: int
    """Number of questions."""
    mean: float
    low: float
    """Lower end of the 95 % confidence interval of the mean over questions."""
    high: float
    difference: float | None
    """Mean of this system minus that of the system it is compared with; None without comparison."""
    p: float | None
    """p-value of the two-sided paired test against that system."""


class Comparisons(Rows[Comparison]):
    """Rows of a comparison; printed as a table."""

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
"""Group of all questions."""
