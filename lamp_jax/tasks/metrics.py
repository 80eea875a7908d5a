"""Official metrics of every task, for each question and over all.

Source: LaMP (arXiv 2304.11406), section 3, and the benchmark's evaluation code. Confidence intervals and tests of a
difference are in significance.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from lamp_jax.config import Compatibility
from lamp_jax.errors import LampError
from lamp_jax.tasks import catalog
from lamp_jax.tasks.catalog import Task
from lamp_jax.tasks.rouge import rouge_scorer
from lamp_jax.tasks.significance import PairedTest, bootstrap_means, mcnemar_test, paired_t_test

OutOfRange = Literal["keep", "clip"]

_ROUGE_RESAMPLES = 1000
_LARGEST = float(np.finfo(np.float32).max)  # the official code reads numbers in float32: beyond, they are infinite
_SHOWN = 5


class InvalidReferenceError(LampError):
    """Reference that is not among its task's labels."""


@dataclass(frozen=True, repr=False)
class Scores:
    """Result of `score`. Metrics have their official names: accuracy, f1, MAE, RMSE, rouge-1, rouge-L, ...

    `mean` is each metric over all questions, BLEU from 0 to 100 and ROUGE, METEOR, F1 and accuracy from 0 to 1;
    `per_sample` is each metric by question id, for those that have a value for a single question (not F1, not RMSE).
    `metric` is the name of the task's main metric. `invalid` has the ids of answers that are neither labels nor
    numbers.
    """

    metric: str
    mean: dict[str, float]
    per_sample: dict[str, dict[str, float]]
    invalid: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """Main metric over all questions."""
        return self.mean[self.metric]

    @property
    def samples(self) -> dict[str, float]:
        """Main metric by question id."""
        return self.per_sample[self.metric]

    def __repr__(self) -> str:
        means = ", ".join(f"{name} {value:.4g}" for name, value in self.mean.items())
        invalid = f", {len(self.invalid)} invalid answers" if self.invalid else ""
        return f"Scores({means}; {len(self.samples)} questions{invalid})"


def score(
    task: Task,
    predictions: Mapping[str, str],
    references: Mapping[str, str],
    *,
    compatibility: Compatibility,
    extra: Sequence[str] = (),
    out_of_range: OutOfRange = "keep",
) -> Scores:
    """Metrics of the task, and those named in `extra` (`bleu`, `meteor`, `rouge-2`, `rouge-lsum`), of answers by id.

    White space around answers and references is ignored. An answer that is not a label of the task is wrong. For LaMP-3
    an answer that is not a finite number counts as the label farthest from the reference (5 for a reference 3); finite
    numbers are unchanged, even outside of 1 to 5, or with `out_of_range="clip"` are clipped to this range. The result
    depends neither on the order of the ids nor on a global random state. Raises LampError when the ids differ,
    InvalidReferenceError when a reference is not a label of the task, and LampError for an extra metric that is
    unknown, does not fit the task or lacks its data.
    """
    _check_same_ids(predictions, references)
    family = _FAMILIES[task.metric]
    measures = [*family.official, *family.choose(extra, task)]
    ids = sorted(references)
    answers = family.read(
        task, ids, [predictions[key].strip() for key in ids], [references[key].strip() for key in ids]
    )
    if out_of_range == "clip":
        answers = family.clip(answers)
    mean, per_sample = {}, {}
    for measure in measures:
        samples = measure.samples(answers) if measure.samples else []
        mean[measure.name] = float(measure.overall(answers, samples, compatibility))
        if measure.samples:
            per_sample[measure.name] = dict(zip(ids, map(float, samples), strict=True))
    return Scores(family.official[0].name, mean, per_sample, tuple(answers.invalid))


def check_references(task: Task, references: Mapping[str, str], *, path: str) -> None:
    """InvalidReferenceError, naming the file, unless `score` accepts these references, by question id.

    Called before long work.
    """
    if task.labels:
        for key in sorted(references):
            _check_label(task, key, references[key].strip(), f"{path}: ")


def extra_metrics(task: Task) -> tuple[str, ...]:
    """Names that `score` takes as `extra` for this task; none for label tasks."""
    return tuple(measure.name for measure in _FAMILIES[task.metric].optional)


def main_metric(task: Task) -> str:
    """Official name of the task's main metric, as in `Scores.mean`: accuracy, MAE or rouge-1."""
    return _FAMILIES[task.metric].official[0].name


def paired_test(metric: str, first: Mapping[str, float], second: Mapping[str, float]) -> PairedTest:
    """Test of the ROPG paper for this metric: McNemar for accuracy, else a two-sided paired t-test.

    `first` and `second` are `Scores.per_sample[metric]` of two systems. Raises LampError for different questions, and
    for a metric without values for single questions.
    """
    tests = {measure.name: measure.test for family in _FAMILIES.values() for measure in family.measures}
    test = tests.get(metric)
    if test is None:
        known = ", ".join(name for name, known_test in tests.items() if known_test)
        raise LampError(f"there is no paired test for {metric!r}: choose one of {known}")
    return test(first, second)


def read_number(answer: str, reference: float, *, lowest: float = 1.0, highest: float = 5.0) -> float:
    """Number of a LaMP-3 answer; the end of the scale farthest from the reference where it is not a finite number."""
    number = _finite(answer)
    if number is not None:
        return number
    return lowest if abs(lowest - reference) > abs(highest - reference) else highest


def _check_same_ids(predictions: Mapping[str, str], references: Mapping[str, str]) -> None:
    if not references:
        raise LampError("there are no references to score against: give an outputs file with references")
    missing = sorted(references.keys() - predictions.keys())
    extra = sorted(predictions.keys() - references.keys())
    problems = [f"{len(missing)} questions have no prediction ({_first(missing)})"] if missing else []
    problems += [f"{len(extra)} predictions have no reference ({_first(extra)})"] if extra else []
    if problems:
        raise LampError("; ".join(problems) + "; give predictions and references of the same questions")


def _first(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_SHOWN]) + (", ..." if len(ids) > _SHOWN else "")


# Parsing of answers by families of metrics.


@dataclass(frozen=True)
class _Answers:
    """Answers and references in the order of the sorted ids: texts, or numbers for LaMP-3."""

    predictions: list[Any]
    references: list[Any]
    labels: tuple[str, ...] = ()
    invalid: list[str] = field(default_factory=list)


def _read_texts(task: Task, ids: list[str], predictions: list[str], references: list[str]) -> _Answers:
    return _Answers(predictions, references, task.labels)


def _check_label(task: Task, key: str, reference: str, where: str = "") -> None:
    if reference not in task.labels:
        raise InvalidReferenceError(
            f"{where}{task.name}, question {key!r}: the reference {reference[:80]!r} is not a label of the task "
            f"({', '.join(task.labels)}); is this an outputs file of {task.name}?"
        )


def _read_labels(task: Task, ids: list[str], predictions: list[str], references: list[str]) -> _Answers:
    for key, reference in zip(ids, references, strict=True):
        _check_label(task, key, reference)
    invalid = [key for key, answer in zip(ids, predictions, strict=True) if answer not in task.labels]
    return _Answers(predictions, references, task.labels, invalid)


def _read_numbers(task: Task, ids: list[str], predictions: list[str], references: list[str]) -> _Answers:
    checked = _read_labels(task, ids, predictions, references)
    truth = [float(reference) for reference in checked.references]
    lowest, highest = float(task.labels[0]), float(task.labels[-1])
    numbers = [
        read_number(answer, reference, lowest=lowest, highest=highest)
        for answer, reference in zip(predictions, truth, strict=True)
    ]
    invalid = [key for key, answer in zip(ids, predictions, strict=True) if _finite(answer) is None]
    return _Answers(numbers, truth, task.labels, invalid)


def _finite(answer: str) -> float | None:
    try:
        number = float(answer)
    except ValueError:
        return None
    return number if abs(number) <= _LARGEST else None


def _clip_numbers(answers: _Answers) -> _Answers:
    lowest, highest = float(answers.labels[0]), float(answers.labels[-1])
    clipped = [min(max(number, lowest), highest) for number in answers.predictions]
    return _Answers(clipped, answers.references, answers.labels, answers.invalid)


# Metrics of single questions, then over all questions.


def _matches(answers: _Answers) -> list[float]:
    return [
        float(answer == reference) for answer, reference in zip(answers.predictions, answers.references, strict=True)
    ]


def _absolute_errors(answers: _Answers) -> list[float]:
    return [abs(answer - reference) for answer, reference in zip(answers.predictions, answers.references, strict=True)]


def _rouge_f(kind: str, answers: _Answers) -> list[float]:
    """F1 of ROUGE (Lin 2004), lower-cased ASCII letters and digits, no stemmer; `rougeLsum` takes lines as
    sentences."""
    scorer = rouge_scorer([kind])
    pairs = zip(answers.references, answers.predictions, strict=True)
    return [scorer.score(reference, answer)[kind].fmeasure for reference, answer in pairs]


def _bleu(predictions: list[str], references: list[str]) -> float:
    """Corpus BLEU (Papineni et al. 2002) as SacreBLEU (Post 2018) sets it: 13a tokens, exponential smoothing."""
    import sacrebleu

    # `force` only silences the warning about text that looks tokenised.
    return sacrebleu.corpus_bleu(predictions, [references], force=True).score


def _sentence_bleu(answers: _Answers) -> list[float]:
    return [
        _bleu([answer], [reference]) for answer, reference in zip(answers.predictions, answers.references, strict=True)
    ]


def _meteor(answers: _Answers) -> list[float]:
    """METEOR (Banerjee and Lavie 2005) with nltk's defaults: alpha 0.9, beta 3, gamma 0.5, WordNet synonyms."""
    from nltk import word_tokenize
    from nltk.translate.meteor_score import single_meteor_score

    try:
        return [
            single_meteor_score(word_tokenize(reference), word_tokenize(answer))
            for answer, reference in zip(answers.predictions, answers.references, strict=True)
        ]
    except LookupError as error:
        raise LampError(
            "METEOR needs nltk's data, which is not on this machine: run `python -m nltk.downloader wordnet punkt_tab` "
            "where there is a network, copy ~/nltk_data here, or leave `meteor` out of the metrics"
        ) from error


def _mean(answers: _Answers, samples: Sequence[float], compatibility: Compatibility) -> float:
    return math.fsum(samples) / len(samples)


def _rouge_mean(answers: _Answers, samples: Sequence[float], compatibility: Compatibility) -> float:
    if compatibility.rouge == "bootstrap":
        return float(np.median(bootstrap_means(samples, _ROUGE_RESAMPLES)))
    return _mean(answers, samples, compatibility)


def _macro_f1(answers: _Answers, samples: Sequence[float], compatibility: Compatibility) -> float:
    """Mean of F1 over all labels of the task; a label without answers and references counts as 0.

    scikit-learn's `f1_score(average="macro", zero_division=0)`, to the last bit; importing it takes a second.
    """
    # One column per label: an answer outside the label set is a row of zeros.
    expected, given = (
        np.array([[text == label for label in answers.labels] for text in texts], int)
        for texts in (answers.references, answers.predictions)
    )
    right, sizes = np.sum(expected & given, axis=0), np.sum(expected, axis=0) + np.sum(given, axis=0)
    return float(np.mean(2 * right / np.maximum(sizes, 1)))


def _root_mean_square(answers: _Answers, samples: Sequence[float], compatibility: Compatibility) -> float:
    return math.sqrt(math.fsum(error**2 for error in _absolute_errors(answers)) / len(answers.references))


def _corpus_bleu(answers: _Answers, samples: Sequence[float], compatibility: Compatibility) -> float:
    return _bleu(answers.predictions, answers.references)


# The table of metrics.


@dataclass(frozen=True)
class _Measure:
    """Metric: `samples` computes each question's value (None where there is none), `overall` that of all
    questions."""

    name: str
    samples: Callable[[_Answers], list[float]] | None
    overall: Callable[[_Answers, Sequence[float], Compatibility], float]
    test: Callable[[Mapping[str, float], Mapping[str, float]], PairedTest] | None = paired_t_test


@dataclass(frozen=True)
class _Family:
    """Metrics with the same parsing of answers; the first of `official` is the main one."""

    read: Callable[[Task, list[str], list[str], list[str]], _Answers]
    official: tuple[_Measure, ...]
    optional: tuple[_Measure, ...] = ()
    clip: Callable[[_Answers], _Answers] = lambda answers: answers

    @property
    def measures(self) -> tuple[_Measure, ...]:
        return self.official + self.optional

    def choose(self, names: Sequence[str], task: Task) -> list[_Measure]:
        known = {measure.name.lower(): measure for measure in self.measures}
        wanted = list(dict.fromkeys(name.lower() for name in names))
        for name in wanted:
            if name not in known:
                raise LampError(f"{task.name} has no metric {name!r}: choose from {', '.join(known)}")
        return [known[name] for name in wanted if known[name] in self.optional]


_FAMILIES: dict[catalog.Metric, _Family] = {
    "accuracy": _Family(
        _read_labels, (_Measure("accuracy", _matches, _mean, mcnemar_test), _Measure("f1", None, _macro_f1, None))
    ),
    "mae": _Family(
        _read_numbers,
        (_Measure("MAE", _absolute_errors, _mean), _Measure("RMSE", None, _root_mean_square, None)),
        clip=_clip_numbers,
    ),
    "rouge-1": _Family(
        _read_texts,
        (
            _Measure("rouge-1", partial(_rouge_f, "rouge1"), _rouge_mean),
            _Measure("rouge-L", partial(_rouge_f, "rougeL"), _rouge_mean),
        ),
        (
            _Measure("rouge-2", partial(_rouge_f, "rouge2"), _rouge_mean),
            _Measure("rouge-LSum", partial(_rouge_f, "rougeLsum"), _rouge_mean),
            _Measure("bleu", _sentence_bleu, _corpus_bleu),
            _Measure("meteor", _meteor, _mean),
        ),
    ),
}
