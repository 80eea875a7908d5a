"""Training and feedback functions of the library, exported by `lamp_jax.api`.

A training writes to the directory `output`, or else to a temporary directory that is removed with the returned object.
`output` has a run record, like a command's: the same call returns the completed work, or resumes a stopped training;
another call is refused, unless `force` replaces the contents.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lamp_jax.artifacts.feedback import MetricValues, QuestionItem, first_pairs, match_feedback
from lamp_jax.choices import check_choices
from lamp_jax.config import CORRECT, SCRATCH, Answering, Compatibility, Decoding, Devices, Prompting
from lamp_jax.data.files import Question, check_unique, question_record
from lamp_jax.errors import LampError
from lamp_jax.inputs.generator import reference_of
from lamp_jax.inputs.retriever import ScoredQuestion, score_questions
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.results import ItemFeedback, Rows, as_list
from lamp_jax.runs.json_files import encode
from lamp_jax.runs.library import LibraryRun, run_in
from lamp_jax.settings import AdapterTraining, GeneratorTraining, RetrieverTraining
from lamp_jax.tasks.catalog import Task, find_task
from lamp_jax.tasks.metrics import check_references
from lamp_jax.tasks.rewards import LIKELIHOOD, Reward, reward_of

if TYPE_CHECKING:
    from lamp_jax.decoding.model import Model
    from lamp_jax.encoding import DualEncoder
    from lamp_jax.training.store import TrainedStore

Dtype = Literal["float32", "bfloat16"]
Sharding = Literal["data", "fsdp", "tensor", "fsdp+tensor"]

_TRAIN, _VALIDATION = "the train questions", "the validation questions"


def finetune(
    model: "Model | str | Path",
    train: Iterable[Question],
    validation: Iterable[Question],
    task: str | Task,
    settings: GeneratorTraining = GeneratorTraining(),  # noqa: B008 (frozen)
    *,
    output: str | Path | None = None,
    force: bool = False,
    dtype: Dtype = "float32",
    sharding: Sharding = "data",
    remat: Literal["none", "full", "attention"] = "none",
) -> "Model":
    """Generator fine-tuned on the questions' prompts and references: the best by the task's metric on `validation`.

    `model` is the start: a directory, a hub name, a model (whose files are read), or `scratch`. The training is that of
    `lamp train`, to the last digit: AdamW on the cross-entropy of the references' tokens. `dtype` and `sharding` are as
    in `load`; `remat="full"` recomputes each layer in the backward pass, "attention" all but the results of attentions.
    The returned model's `facts` have its score and step. LampError for a question without reference, a batch that does
    not divide over the mesh, and a training with non-finite numbers.

    >>> trained = lamp.finetune(
    ...     "scratch", questions, questions[:4], "LaMP-3",
    ...     lamp.GeneratorTraining(scratch=lamp.Scratch(16, 32, 1, 1, 2, 300), prompting=lamp.Prompting(2, 128),
    ...                            learning=lamp.Learning(epochs=1, batch_size=8),
    ...                            answering=lamp.Answering("labels")))
    >>> trained.facts["step"]
    2
    """  # fmt: skip
    check_choices(finetune, locals())
    from lamp_jax.decoding.generation import DEFAULT_GENERATION, read_generation
    from lamp_jax.decoding.model import open_model
    from lamp_jax.sharding import set_or_default_mesh
    from lamp_jax.training.divergence import check_converging
    from lamp_jax.training.generator import FILES, add_profile_targets, check_questions, train_generator
    from lamp_jax.training.loop import check_learning

    found, start, devices = find_task(task), _directory(model), Devices(dtype=dtype, sharding=sharding, remat=remat)
    train, validation = as_list(Question, train, "train"), as_list(Question, validation, "validation")
    check_questions(train, found, _TRAIN)
    check_questions(validation, found, _VALIDATION, scored=True)
    if not train or not validation:
        raise LampError(f"{_VALIDATION if train else _TRAIN}: there are none; give at least one")
    generation = DEFAULT_GENERATION if start == SCRATCH else read_generation(start, settings.answering)
    questions = add_profile_targets(train, found, newest=settings.profile_targets)
    contents = {"train": _digest(train), "validation": _digest(validation)}

    with set_or_default_mesh() as mesh:
        check_learning(settings.learning, mesh)

        def work(place: Path) -> Mapping[str, Any]:
            check_converging(place)
            progress = train_generator(
                settings, found, questions, validation, generation, model=start, output=place, devices=devices
            )
            return {**asdict(progress), "generation": generation.facts}

        inputs = [start] * (start != SCRATCH)
        run = LibraryRun("finetune", found.name, settings, contents)
        done = run_in(output, run, work, inputs=inputs, makes=FILES, force=force)
        return open_model(done.directory, devices, facts=done.facts, temporary=done.temporary)


def feedback(
    model: "Model",
    questions: Iterable[Question],
    task: str | Task,
    *,
    profile_size: int = 16,
    reward: Reward = "metric",
    decode: Decoding = "beam",
    num_beams: int = 4,
    generation_max_length: int = 128,
    generation_config: Literal["model", "none"] = "model",
    max_length: int = 512,
    batch_size: int = 16,
    compatibility: Compatibility = CORRECT,
) -> Rows[ItemFeedback]:
    """Feedback of the model on each question with each of its first `profile_size` items alone in the prompt.

    The reward is that of the task's metric (for MAE from 1 for the right answer to 0 for the worst error:
    arXiv 2404.05970, Eq. 8), or the mean log-probability of the reference's tokens, in nats. Prompts have at most
    `max_length` tokens; the other options are those of `generate`. LampError for a question without reference.

    >>> lamp.feedback(model, questions[:2], "LaMP-3", profile_size=1, decode="labels")[0].rank
    0
    """
    check_choices(feedback, locals())
    from flax import nnx
    from tqdm.auto import tqdm

    from lamp_jax.decoding.feedback import Trial, likelihood_rater, metric_rater, rate_trials
    from lamp_jax.sharding import check_divides, use_mesh

    found, questions = find_task(task), as_list(Question, questions, "questions")
    check_unique((question.id for question in questions), set(), "the questions")
    references = {question.id: reference_of(question) for question in questions}
    if reward == "metric":
        check_references(found, references, path="the questions")
    answering = Answering(decode, num_beams, generation_max_length, generation_config)
    pairs = first_pairs(questions, profile_size)
    trials = [Trial(replace(pair.question, profile=(pair.question.profile[pair.rank],)), pair.names) for pair in pairs]
    graph, params = nnx.split(model.module)
    rows = Rows()
    with (
        use_mesh(model.mesh),
        tqdm(total=len(trials), desc="feedback", unit="prompt", disable=None) as bar,
    ):
        check_divides("batch_size", batch_size, "data")
        if reward == "likelihood":
            rate = likelihood_rater(graph, params, model.tokenizer, trials, answering=answering, batch_size=batch_size)
        else:
            rate = metric_rater(model.answerer(found, answering), params, found, compatibility=compatibility)
        batches = rate_trials(
            trials,
            rate,
            found,
            model.tokenizer,
            prompting=Prompting(1, max_length),
            batch_size=batch_size,
            compatibility=compatibility,
            advance=bar.update,
        )
        for batch in batches:
            for trial, (output, metrics) in zip(batch.trials, batch.answers, strict=True):
                worth = reward_of(found, metrics, references[trial.question.id], kind=reward)
                rows.append(ItemFeedback(**trial.names, output=output, reward=worth, metrics=metrics))
    order = {question.id: place for place, question in enumerate(questions)}
    return Rows(sorted(rows, key=lambda row: (order[row.question], row.rank)))


def train_retriever(
    encoder: "DualEncoder | str | Path",
    questions: Iterable[Question],
    feedback: Iterable[ItemFeedback],
    task: str | Task,
    settings: RetrieverTraining = RetrieverTraining(),  # noqa: B008 (frozen)
    *,
    validation: tuple[Iterable[Question], Iterable[ItemFeedback]] | None = None,
    output: str | Path | None = None,
    force: bool = False,
    dtype: Dtype = "float32",
    sharding: Sharding = "data",
) -> "DualEncoder":
    """Dual encoder trained on feedback to rank the items; `rank` accepts it as its `encoder`.

    `encoder` is the start: a directory, a hub name, an encoder (whose files are read), or `scratch`. The training is
    that of `lamp train-retriever`, to the last digit: ROPG-KD, which distils the softmax of the rewards, or ROPG-RL,
    which maximizes the expected reward (arXiv 2404.05970, section 4.1). The best checkpoint by the mean reward of the
    first-ranked items is kept, on the `validation` questions and their feedback, or on a held-out share. The returned
    encoder's `facts` have that reward before training and at the best step. LampError where feedback is missing, and
    where all rewards of every question are equal.

    >>> rows = [lamp.ItemFeedback(q.id, str(item["id"]), place, None, 0.0, {"MAE": float(place % 5)})
    ...         for q in questions for place, item in enumerate(q.profile[:3])]
    >>> trained = lamp.train_retriever(
    ...     "scratch", questions, rows, "LaMP-3",
    ...     lamp.RetrieverTraining(scratch=lamp.ScratchEncoder(16, 32, 1, 2, 300), profile_size=3, held_out=0.25,
    ...                            max_length=32, learning=lamp.Learning(epochs=1, batch_size=8)))
    >>> len(lamp.rank(questions[:2], "LaMP-3", "dense", encoder=trained))
    2
    """  # fmt: skip
    check_choices(train_retriever, locals())
    from lamp_jax.encoding import open_encoder
    from lamp_jax.sharding import set_or_default_mesh
    from lamp_jax.training.divergence import check_converging
    from lamp_jax.training.loop import check_learning
    from lamp_jax.training.retriever import (
        FILES,
        check_retriever_training,
        choose_form,
        divide,
        find_start,
    )
    from lamp_jax.training.retriever import train_retriever as train

    found, devices = find_task(task), Devices(dtype=dtype, sharding=sharding)
    start_name = str(encoder) if isinstance(encoder, str | Path) else encoder.name
    check_retriever_training(settings)
    questions, feedback = as_list(Question, questions, "questions"), as_list(ItemFeedback, feedback, "feedback")
    if validation is not None and len(validation) != 2:
        raise LampError(f"validation: expected a pair, (questions, feedback), found {len(validation)} values")
    held_questions, held_feedback = validation or ((), ())
    held = (
        as_list(Question, held_questions, "validation[0]"),
        as_list(ItemFeedback, held_feedback, "validation[1]"),
    )
    scored = _score_questions(settings, found, questions, feedback, name=_TRAIN)
    divided = divide(settings, scored, _score_questions(settings, found, *held, name=_VALIDATION), name=_TRAIN)
    contents = {"questions": _digest(questions), "feedback": _digest_rows(feedback)}
    contents |= {"validation": _digest(held[0]), "validation_feedback": _digest_rows(held[1])}

    with set_or_default_mesh() as mesh:
        check_learning(settings.learning, mesh)
        start = find_start(start_name)
        form = choose_form(settings, start)

        def work(place: Path) -> Mapping[str, Any]:
            check_converging(place)
            before, progress = train(
                settings, found, divided.train, divided.validation, start, form, output=place, devices=devices
            )
            counts = {"questions": len(divided.train), "skipped_equal_rewards": divided.skipped}
            return {**counts, "before": before, "encoder": asdict(form), **asdict(progress)}

        inputs = [start_name] * (start_name != SCRATCH)
        run = LibraryRun("train_retriever", found.name, settings, contents)
        done = run_in(output, run, work, inputs=inputs, makes=FILES, force=force)
        opened = open_encoder(str(done.directory), devices)
        return replace(opened, facts=done.facts, temporary=done.temporary)


def adapters(
    model: "Model | str | Path",
    questions: Iterable[Question],
    task: str | Task,
    settings: AdapterTraining = AdapterTraining(),  # noqa: B008 (frozen)
    *,
    output: str | Path | None = None,
    force: bool = False,
    dtype: Dtype = "float32",
    sharding: Sharding = "data",
) -> "TrainedStore":
    """LoRA adapters of all users over the model, each trained on the user's profile, many users at a time.

    `generate` accepts the store as its `adapters`. The training is that of `lamp train-adapters`, to the last digit
    (arXiv 2409.09510). `.users` has a row for each adapter: user, items, updates, the last epoch's loss in nats per
    token. LampError for invalid values, and where no user has training examples.

    >>> store = lamp.adapters(
    ...     model, questions[:4], "LaMP-3",
    ...     lamp.AdapterTraining(users_per_step=8, max_length=64, target_length=8, lora=lamp.Lora(2, 8),
    ...                          learning=lamp.Optimization(epochs=1)))
    >>> len(store.users)
    4
    """  # fmt: skip
    check_choices(adapters, locals())
    from lamp_jax.artifacts.adapters import open_store
    from lamp_jax.models.families import check_generator_tokenizer
    from lamp_jax.sharding import set_or_default_mesh
    from lamp_jax.training.store import (
        FILES,
        TrainedStore,
        check_store_training,
        find_user_examples,
        make_form,
        train_store,
    )

    found, base, devices = find_task(task), _directory(model), Devices(dtype=dtype, sharding=sharding)
    questions = as_list(Question, questions, "questions")
    with set_or_default_mesh():
        check_store_training(settings)
        form = make_form(base, settings.lora, settings.keep)
        tokenizer = load_tokenizer(base)
        check_generator_tokenizer(tokenizer, base)
        users, without = find_user_examples(settings, found, questions, tokenizer, name="the questions")

        def work(place: Path) -> Mapping[str, Any]:
            trained = train_store(settings, base, users, form, output=place, devices=devices)
            failed = {"users_without_items": without, "users_failed": len(trained.failed)}
            return {"users": trained.users, "items": trained.items, **failed}

        run = LibraryRun("adapters", found.name, settings, {"questions": _digest(questions)})
        done = run_in(output, run, work, inputs=[base], makes=FILES, force=force)
        return TrainedStore(open_store(done.directory), done.facts, done.temporary)


def _directory(model: "Model | str | Path") -> str:
    return str(model) if isinstance(model, str | Path) else model.directory


def _score_questions(
    settings: RetrieverTraining, task: Task, questions: Sequence[Question], rows: Sequence[ItemFeedback], *, name: str
) -> list[ScoredQuestion]:
    """Questions with the rewards of their first items."""
    by_pair = {(row.question, row.item): row.metrics for row in rows}
    if settings.reward == "likelihood" and rows and not any(LIKELIHOOD in row.metrics for row in rows):
        raise LampError(f'{name}: their feedback has no {LIKELIHOOD}; ask for it with feedback(reward="likelihood")')

    def look_up(pair: QuestionItem) -> MetricValues | None:
        return by_pair.get((pair.question.id, pair.item_id))

    metrics = match_feedback(look_up, task, questions, profile_size=settings.profile_size, name=name)
    return score_questions(settings, task, questions, metrics, path=name, compatibility=settings.compatibility)


def _digest(questions: Iterable[Question]) -> str:
    return _digest_of(encode(question_record(question)) for question in questions)


def _digest_rows(rows: Iterable[ItemFeedback]) -> str:
    return _digest_of(encode(asdict(row)) for row in rows)


def _digest_of(records: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\n".join(records)).hexdigest()
