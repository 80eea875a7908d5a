"""Comparison of systems on the same questions: means, intervals, paired tests, means by group; as a table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lamp_jax.tasks.metrics import Scores, paired_test
from lamp_jax.tasks.significance import confidence_interval


class Against(NamedTuple):
    """Paired test of every row against one row, over all questions or one group of users."""

    row: str
    group: str = ""

    @property
    def title(self) -> str:
        return f"p vs {self.row}" + (f" ({self.group})" if self.group else "")


def compare_row(
    name: str, scores: Mapping[str, Scores], groups: Mapping[str, Sequence[str]], tests: Sequence[Against]
) -> dict[str, Any]:
    """Line of `results.json`: mean, 95 % interval, tests against other rows, mean by group of users."""
    metric, samples = scores[name].metric, scores[name].samples
    interval = confidence_interval(samples)

    def test(against: Against) -> float:
        ids = groups[against.group] if against.group else list(samples)
        one, other = ({key: scores[row].samples[key] for key in ids} for row in (name, against.row))
        return paired_test(metric, one, other).p

    return {
        "retriever": name,
        "metric": metric,
        "mean": scores[name].value,
        "low": interval.low,
        "high": interval.high,
        "n": len(samples),
        "tests": {against.title: test(against) for against in tests},
        "groups": {group: math.fsum(samples[key] for key in ids) / len(ids) for group, ids in groups.items()},
    }


def format_table(rows: Sequence[Mapping[str, Any]], further: Sequence[str]) -> str:
    """Table of the rows as text."""
    titles, groups = list(rows[0]["tests"]), list(rows[0]["groups"])
    widths = [max(10, len(title) + 2) for title in titles]
    head = f"{'retriever':10} {rows[0]['metric']:>8}  95 % interval "
    head += "".join(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True))
    lines = [head + "".join(f"{title:>10}" for title in (*further, *groups))]
    for one in rows:
        tests = "".join(f"{one['tests'][title]:{width}.2g}" for title, width in zip(titles, widths, strict=True))
        others = [*(one[title] for title in further), *(one["groups"][group] for group in groups)]
        cells = "".join(f"{'' if value is None else format(value, '.3f'):>10}" for value in others)
        interval = f"{one['low']:.3f} to {one['high']:.3f}"
        lines.append(f"{one['retriever']:10} {one['mean']:8.3f}  {interval}{tests}{cells}")
    return "\n".join(lines)
