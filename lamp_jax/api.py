"""Functions of the library, available after `import lamp_jax as lamp`.

They take and return dataclasses; `pandas.DataFrame` accepts lists of them. No further processes are started unless
`workers` asks for them. Models are placed on the current mesh (`jax.set_mesh`) when they are loaded, or, if none is
set, on all devices with batches sharded over them; a model stays on its mesh. Modules that need jax are imported only
when they are used, so importing this module initializes no device.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from lamp_jax.api_training import Dtype, Sharding, adapters, feedback, finetune, train_retriever
from lamp_jax.choices import check_choices
from lamp_jax.config import (
    CORRECT,
    Answering,
    Compatibility,
    Decoding,
    Devices,
    Prompting,
    Storage,
)
from lamp_jax.data import files
from lamp_jax.data.files import Question
from lamp_jax.data.patches import ALL as ALL_PATCHES
from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import Example
from lamp_jax.inputs.generator import make_prompts, reference_of
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.results import ALL, Answer, Comparison, Comparisons, QuestionPrompt, RankedQuestion, Rows, as_list
from lamp_jax.retrieval.encoders import choose_dates
from lamp_jax.retrieval.rankers import RANKERS, RankOptions, RetrieverName
from lamp_jax.retrieval.ranking import apply_ranking
from lamp_jax.retrieval.scored import Ranked
from lamp_jax.settings import PromptSettings
from lamp_jax.tasks.catalog import TASKS, Task, find_task
from lamp_jax.tasks.metrics import OutOfRange, Scores, paired_test
from lamp_jax.tasks.metrics import score as score_answers
from lamp_jax.tasks.significance import confidence_interval

if TYPE_CHECKING:
    from lamp_jax.artifacts.adapters import AdapterStore
    from lamp_jax.decoding.model import Model
    from lamp_jax.encoding import DualEncoder
    from lamp_jax.training.store import TrainedStore

Done = TypeVar("Done")

_NAMES = [row.name for row in RANKERS.values() if row.reads_questions_alone]

__all__ = [
    "adapters",
    "compare",
    "feedback",
    "finetune",
    "generate",
    "load",
    "prompts",
    "rank",
    "read_questions",
    "score",
    "task",
    "tasks",
    "train_retriever",
]


def task(name: str | Task) -> Task:
    """Task called `name`, with template, labels, metric and fields; `LaMP-3`, `LaMP_3` and `lamp_3` are the same.

    LampError, with the list, for an unknown name. Source: LaMP (arXiv 2304.11406).

    >>> lamp.task("lamp_3").labels
    ('1', '2', '3', '4', '5')
    """
    return find_task(name)


def tasks() -> tuple[Task, ...]:
    """All tasks of the table, in the order of their numbers.

    >>> [one.name for one in lamp.tasks()][:3]
    ['LaMP-1', 'LaMP-2', 'LaMP-2-old']
    """
    return tuple(TASKS.values())


def read_questions(
    source: str | Path | Iterable[Mapping[str, Any]],
    task: str | Task | None = None,
    *,
    golds: str | Path | Mapping[str, str] | None = None,
    patches: Iterable[str] = ALL_PATCHES,
) -> Rows[Question]:
    """Questions with their profiles, from a file in LaMP's format or from records, such as a `datasets.Dataset`.

    With `task`, every profile item is checked for the fields that the task needs. `golds` is the outputs file, or the
    references by question id, for questions without references. Known defects of the published files are fixed
    (`patches`). LampError, with the file, the record and the remedy, for invalid records and duplicate ids.

    >>> record = {"id": "1", "input": "review: good", "profile": [{"id": "a", "text": "bad", "score": "2"}]}
    >>> lamp.read_questions([record], "LaMP-3", golds={"1": "5"})
    [Question('1', 1 items, 'review: good', output='5')]
    """
    found = None if task is None else find_task(task)
    if isinstance(source, str | Path):
        questions, name = files.read_questions(source, task=found, patches=patches), str(source)
    else:
        name = "the records"
        numbered = enumerate(source)
        questions = [
            files.question_of(_record(one), f"{name}, {place}", task=found, patches=patches) for place, one in numbered
        ]
        files.check_unique((question.id for question in questions), set(), name)
    if golds is not None:
        right = "the references" if isinstance(golds, Mapping) else str(golds)
        outputs = golds if isinstance(golds, Mapping) else files.read_outputs(golds).by_id
        questions = files.add_outputs(questions, outputs, left=name, right=right)
    return Rows(questions)


def _record(given: Mapping[str, Any]) -> dict[str, Any]:
    """Record as in JSON: the tuple of a dataclass's profile becomes a list."""
    record = dict(given)
    if isinstance(record.get("profile"), tuple):
        record["profile"] = list(record["profile"])
    return record


def rank(
    questions: Iterable[Question],
    task: str | Task,
    retriever: str = "bm25",
    *,
    encoder: "str | Path | DualEncoder" = "facebook/contriever",
    max_length: int | None = None,
    use_date: bool = False,
    variant: Literal["okapi", "lucene"] = "okapi",
    seed: int = 0,
    workers: int = 1,
    compatibility: Compatibility = CORRECT,
) -> Rows[RankedQuestion]:
    """Questions with their complete profiles ranked by a retriever, best item first, and the items' scores.

    `retriever` is `bm25` (with `variant`), `recency`, `random` (with `seed`), `dense` (with `encoder`: a directory, a
    hub name, or an encoder of `train_retriever`; texts of at most `max_length` tokens), or `none`, for empty profiles.
    `use_date` appends its date to every document. `workers` processes rank by BM25. LampError for an unknown
    retriever, and for an item without a text or date that the retriever needs.

    >>> ranked = lamp.rank(questions, "LaMP-3", "bm25")
    >>> ranked[0].scores[0] >= ranked[0].scores[-1]
    True
    """
    check_choices(rank, locals())
    found, questions = find_task(task), as_list(Question, questions, "questions")
    if retriever == "none":
        return Rows(_ranked(replace(question, profile=()), ()) for question in questions)
    if retriever == "dense":
        rankings = _rank_dense(questions, found, encoder, max_length, use_date=use_date, compatibility=compatibility)
    elif retriever in _NAMES:
        options = RankOptions(
            use_date=use_date, variant=variant, seed=seed, workers=workers, compatibility=compatibility
        )
        rankings = RANKERS[retriever].rank(questions, found, options)
    else:
        raise LampError(f"unknown retriever {retriever!r}: choose one of {', '.join([*_NAMES, 'dense', 'none'])}")
    return Rows(
        _ranked(apply_ranking(question, one.item_ids), map(float, one.scores))
        for question, one in zip(questions, _bar(rankings, "rank", len(questions)), strict=True)
    )


def _bar(rows: Iterable[Done], title: str, count: int) -> Iterable[Done]:
    """Rows with a progress bar in notebooks and terminals."""
    from tqdm.auto import tqdm

    return tqdm(rows, title, count, unit="question", disable=None)


def _ranked(question: Question, scores: Iterable[float]) -> RankedQuestion:
    fields = (question.id, question.input, question.profile, question.user_id, question.output)
    return RankedQuestion(*fields, scores=tuple(scores))


def _rank_dense(
    questions: Sequence[Question],
    task: Task,
    encoder: "str | Path | DualEncoder",
    max_length: int | None,
    *,
    use_date: bool,
    compatibility: Compatibility,
) -> list[Ranked]:
    from lamp_jax.encoding import open_encoder, rank_by_encoder
    from lamp_jax.sharding import set_or_default_mesh, use_mesh

    if isinstance(encoder, str | Path):
        with set_or_default_mesh():
            encoder = open_encoder(str(encoder), Devices(), max_length=max_length)
    elif max_length is not None:
        raise LampError(f"max_length={max_length}: {encoder.name} is open with its own length; leave max_length out")
    dated = choose_dates(encoder.settings, use_date=use_date, name=encoder.name)
    with use_mesh(encoder.mesh):
        return list(rank_by_encoder(questions, task, encoder, use_date=dated, compatibility=compatibility))


def prompts(
    questions: Iterable[Question],
    task: str | Task,
    tokenizer: Any,
    *,
    num_retrieved: int = 4,
    max_length: int = 512,
    retriever: RetrieverName = "file",
    compatibility: Compatibility = CORRECT,
) -> Rows[QuestionPrompt]:
    """Prompts of the questions: each question's input and its first `num_retrieved` profile items.

    `tokenizer` is a Hugging Face tokenizer, its directory or hub name; a prompt has at most `max_length` tokens, `</s>`
    included, divided among the items as in the benchmark. `retriever` orders the profiles; the default keeps their
    order. LampError where an item lacks a field. Templates: LaMP (arXiv 2304.11406), appendix.

    >>> lamp.prompts(questions, "LaMP-3", tokenizer, num_retrieved=2, max_length=192)[0].used_items
    2
    """
    check_choices(prompts, locals())
    found, questions = find_task(task), as_list(Question, questions, "questions")
    tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
    settings = PromptSettings(prompting=Prompting(num_retrieved, max_length), compatibility=compatibility)
    made = make_prompts(questions, found, tokenizer, settings, retriever=retriever)
    return Rows(
        QuestionPrompt(question.id, question.user, found.name, one.text, one.tokens, one.used_items, one.fell_back)
        for question, one in zip(questions, _bar(made, "prompts", len(questions)), strict=True)
    )


def load(
    name: str | Path,
    *,
    dtype: Dtype = "float32",
    sharding: Sharding = "data",
    storage: Storage = "float32",
) -> "Model":
    """Generator and its tokenizer from a directory in Hugging Face's format or a hub name, loaded onto the devices.

    `dtype` is the type of computations; `sharding` whether only batches or also parameters are sharded over the mesh;
    `storage` the type of stored matrices. `.module` has the parameters and forward passes, `.tokenizer` the tokenizer.
    LampError, naming the file, where there is no readable generator.

    >>> lamp.load(model_directory).module.config.d_model
    64
    """
    check_choices(load, locals())
    from lamp_jax.decoding.model import open_model

    return open_model(name, Devices(dtype=dtype, sharding=sharding), storage=storage)


def generate(
    model: "Model",
    prompts: Iterable[QuestionPrompt],
    *,
    decode: Decoding = "beam",
    num_beams: int = 4,
    generation_max_length: int = 128,
    generation_config: Literal["model", "none"] = "model",
    batch_size: int = 16,
    adapters: "TrainedStore | AdapterStore | str | Path | None" = None,
    task: str | Task | None = None,
) -> Rows[Answer]:
    """Answers of the model to the prompts, in their order.

    `decode` is `beam` (with `num_beams`) or `greedy` search for at most `generation_max_length` tokens, start token
    included, with the model's `generation_config.json` unless `generation_config` is `none`; or `labels`, the best
    label of the task for its metric, with the `probabilities` of all. `adapters` is a store: every prompt is answered
    with its user's adapter, else the shared one, else by the base model. The prompts name their task; `task` is for a
    task that is not in the table. LampError for `labels` where the task has none, for a batch that does not divide over
    the mesh, and for a store of another model.

    >>> answers = lamp.generate(model, prompts, decode="labels")
    >>> round(sum(answers[0].probabilities.values()), 6)
    1.0
    """
    check_choices(generate, locals())
    from flax import nnx

    from lamp_jax.decoding.answering import answer, read_adapters
    from lamp_jax.sharding import check_divides, use_mesh
    from lamp_jax.training.store import open_adapters

    prompts = as_list(QuestionPrompt, prompts, "prompts")
    if not prompts:
        return Rows()
    found = find_task(task if task is not None else _only({prompt.task for prompt in prompts}))
    files.check_unique((prompt.id for prompt in prompts), set(), "the prompts")
    answering = Answering(decode, num_beams, generation_max_length, generation_config)
    store = None if adapters is None else open_adapters(adapters, model.directory)
    with use_mesh(model.mesh):
        check_divides("batch_size", batch_size, "data")
        decoded = answer(
            [Example(prompt.id, prompt.tokens) for prompt in prompts],
            model.answerer(found, answering, store and store.form.lora).decode,
            nnx.state(model.module),
            batch_size=batch_size,
            max_length=-(-max(len(prompt.tokens) for prompt in prompts) // 32) * 32,
            adapters=store and read_adapters(store, {prompt.id: prompt.user for prompt in prompts}),
        )
    return Rows(
        Answer(key, one.text, None if one.probabilities is None else _by_label(found, one.probabilities))
        for key, one in decoded.items()
    )


def _by_label(task: Task, probabilities: Iterable[float]) -> dict[str, float]:
    return dict(zip(task.labels, map(float, probabilities), strict=True))


def _only(names: set[str]) -> str:
    if len(names) > 1:
        raise LampError(f"prompts of several tasks, {', '.join(sorted(names))}: give those of one task at a time")
    return names.pop()


def score(
    task: str | Task,
    answers: Sequence[Answer] | Mapping[str, str],
    questions: Sequence[Question] | Mapping[str, str],
    *,
    extra: Sequence[str] = (),
    out_of_range: OutOfRange = "keep",
    compatibility: Compatibility = CORRECT,
) -> Scores:
    """Metrics of the task: `.mean` over all questions by metric, `.per_sample` by metric and question id.

    `questions` have the references; answers and references can also be texts by question id.
    `pandas.DataFrame(scores.per_sample)` has a row for each question and a column for each metric. ROUGE, METEOR, F1
    and accuracy are from 0 to 1, BLEU from 0 to 100, MAE and RMSE in points of the scale. `extra` are further metrics
    of tasks that generate text: `bleu`, `meteor`, `rouge-2`, `rouge-lsum`. LampError where the ids differ, a question
    has no reference, or a reference is not a label. Source: LaMP (arXiv 2304.11406), section 3.

    >>> lamp.score("LaMP-3", {"1": "4", "2": "2"}, {"1": "5", "2": "2"}).mean
    {'MAE': 0.5, 'RMSE': 0.7071067811865476}
    """
    check_choices(score, locals())
    given = answers if isinstance(answers, Mapping) else {one.id: one.text for one in answers}
    references = questions if isinstance(questions, Mapping) else {one.id: reference_of(one) for one in questions}
    return score_answers(
        find_task(task), given, references, compatibility=compatibility, extra=extra, out_of_range=out_of_range
    )


def compare(
    scores: Mapping[str, Scores], *, against: str | None = None, groups: Mapping[str, str] | None = None
) -> Comparisons:
    """Comparison of systems on the same questions: means of the main metric, 95 % bootstrap intervals, paired tests.

    `scores` has the scores of each system by its name, `against` names the system that the others are tested against:
    McNemar's test for accuracy, else a two-sided paired t-test (arXiv 2404.05970, section 6.1). `groups` maps question
    ids to groups: then there is also a row for each system and group. The rows are printed as a table. LampError for
    systems that were scored on different questions.

    >>> one, other = ({"1": "5", "2": "2", "3": "1"}, {"1": "4", "2": "2", "3": "3"})
    >>> references = {"1": "5", "2": "2", "3": "2"}
    >>> both = {name: lamp.score("LaMP-3", given, references) for name, given in (("one", one), ("other", other))}
    >>> [(row.name, round(row.mean, 2)) for row in lamp.compare(both, against="one")]
    [('one', 0.33), ('other', 0.67)]
    """
    if against is not None and against not in scores:
        raise LampError(f"against={against!r}: not among the scores of {', '.join(scores)}")
    first = next(iter(scores.values()), None)
    ids = list(first.samples) if first else []
    members = {ALL: ids}
    if groups is not None:
        missing = [key for key in ids if key not in groups]
        if missing:
            raise LampError(
                f"groups: {len(missing)} questions have no group (first: {missing[0]!r}); give one for each"
            )
        members |= {
            group: [key for key in ids if groups[key] == group] for group in sorted({groups[key] for key in ids})
        }
    rows = Comparisons(_compare(name, scores, against, group, ids) for name in scores for group, ids in members.items())
    rows.against = against
    return rows


def _compare(name: str, scores: Mapping[str, Scores], against: str | None, group: str, ids: list[str]) -> Comparison:
    def samples(of: str) -> dict[str, float]:
        found = scores[of].samples
        if group == ALL:
            return found
        return {key: found[key] for key in ids}

    one, metric = samples(name), scores[name].metric
    interval = confidence_interval(one)
    test = paired_test(metric, one, samples(against)) if against is not None and len(one) > 1 else None
    mean = scores[name].value if group == ALL else sum(one.values()) / len(one)
    difference, p = (None, None) if test is None else (test.difference, test.p)
    return Comparison(name, group, metric, len(one), mean, interval.low, interval.high, difference, p)
