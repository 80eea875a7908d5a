"""`lamp generate`: a prediction file of a model's answers to questions, and their scores if there are references."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
from flax import nnx
from tqdm.auto import tqdm

from lamp_jax.artifacts.adapters import CHECKED, AdapterStore, count_users, open_store
from lamp_jax.data.files import Question, add_outputs, read_outputs, write_predictions
from lamp_jax.decoding.answering import answer, read_adapters
from lamp_jax.decoding.answers import Answerer
from lamp_jax.decoding.generation import open_generation
from lamp_jax.errors import LampError
from lamp_jax.inputs.generator import make_prompts, prompt_examples
from lamp_jax.inputs.retrieved import read_retrieved
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.models.families import check_generator_tokenizer, load_generator
from lamp_jax.options.generator import Generate
from lamp_jax.runs.journals import Journal
from lamp_jax.runs.outputs import read_record
from lamp_jax.runs.processes import on_first
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.sharding import check_divides, model_options, open_mesh
from lamp_jax.stages.evaluate import report, write_report
from lamp_jax.tasks.catalog import Task, find_task
from lamp_jax.tasks.metrics import check_references, score
from lamp_jax.tasks.prompts import Prompt
from lamp_jax.training.store import check_store


@guard_outputs
def run(options: Generate) -> None:
    task = find_task(options.task)
    inputs = [name for name in (options.questions, options.golds, options.model, options.adapters) if name]
    beside = {"scores": Path(options.output).with_suffix(".scores.json")}
    record = reserve(options.output, options, inputs=inputs, beside=beside, checked=CHECKED)
    if record.state == "done":
        return print(f"{options.output}: already generated")
    questions = read_retrieved(options.questions, task, options, retriever=options.retriever)
    if options.golds:
        questions = add_outputs(
            questions, read_outputs(options.golds).by_id, left=options.questions, right=options.golds
        )
    references = _known_references(questions, task, path=options.golds or options.questions)
    mesh = open_mesh(options.devices)
    with jax.set_mesh(mesh):
        check_divides("--batch-size", options.batch_size, "data")
    generation = open_generation(options.model, options.answering)
    facts, store = {"questions": len(questions), "generation": generation.facts}, None
    if options.adapters:
        store = open_adapters(options.adapters, options.model)
        facts["adapted"] = count_adapted(store, questions, path=options.questions)
        print(f"{facts['adapted']} of {len(questions)} questions have an adapter; the model alone answers the others")
    tokenizer = load_tokenizer(options.model)
    check_generator_tokenizer(tokenizer, options.model)
    with jax.set_mesh(mesh):  # before the prompts, so that a damaged model is reported at once
        model_kwargs = model_options(options.devices)
        graph, params = nnx.split(load_generator(options.model, storage=options.storage, **model_kwargs))
    prompts = make_prompts(questions, task, tokenizer, options, retriever="file")
    fallbacks: list[bool] = []
    prompts = _noting(tqdm(prompts, "prompts", len(questions), disable=None), fallbacks)
    examples = prompt_examples(questions, prompts)
    with jax.set_mesh(mesh):
        lora = store and store.form.lora
        answerer = Answerer(graph, tokenizer, task, options.answering, generation=generation, lora=lora)
        record.begin()
        with contextlib.closing(Journal(record.journal)) as journal:
            answers = answer(
                examples,
                answerer,
                params,
                batch_size=options.batch_size,
                max_length=options.prompting.max_length,
                journal=journal,
                adapters=store and read_adapters(store, users_of(questions)),
            )
    on_first(lambda: write_predictions(record.target, task, answers))
    print(f"{options.output}: {len(answers)} answers")
    if references:
        scores = score(task, answers, references, compatibility=options.compatibility)
        results = {task.official_name: report(task, scores)}
        on_first(lambda: write_report(record.beside("scores"), results, {}, options.compatibility))
    record.finish(**facts, bare_inputs=sum(fallbacks))


def _noting(prompts: Iterable[Prompt], fallbacks: list[bool]) -> Iterator[Prompt]:
    """The prompts; adds to `fallbacks` whether each has no room for any item."""
    for prompt in prompts:
        fallbacks.append(prompt.fell_back)
        yield prompt


def open_adapters(directory: str, model: str) -> AdapterStore:
    """Adapter store of a model. LampError for a store of another model, and for an incomplete one."""
    store = open_store(directory)
    check_store(store, model, where=directory)
    made = read_record(Path(directory)) or {}
    trained = made.get("users") if made.get("finished") else 0
    if made.get("finished") and (type(trained) is not int or trained > len(store.entries)):
        raise LampError(
            f"{directory}: its training finished with adapters of {trained} users, but it has adapters of "
            f"{len(store.entries)}; copy the store again"
        )
    if made and not made.get("finished"):
        print(f"{directory}: its training is not finished; adapters of {len(store.entries)} users so far")
    return store


def users_of(questions: Sequence[Question]) -> dict[str, str]:
    """Users by question id."""
    return {question.id: question.user for question in questions}


def count_adapted(store: AdapterStore, questions: Sequence[Question], *, path: str) -> int:
    """Number of questions of a file that an adapter answers. LampError if there is none."""
    found = sum(user is not None for user in store.serving([question.user for question in questions]))
    if not found:
        asked = list(dict.fromkeys(question.user for question in questions))
        raise LampError(
            f"{store.directory}: has adapters of {count_users(store.entries)}, but of none of the "
            f"{count_users(asked)} of {path}; give the store of these users, or leave --adapters out"
        )
    return found


def _known_references(questions: Sequence[Question], task: Task, *, path: str) -> dict[str, str]:
    """References by question id; empty unless all questions have one. LampError for an invalid reference."""
    references = {question.id: question.output for question in questions if question.output is not None}
    if len(references) < len(questions):
        return {}
    check_references(task, references, path=path)
    return references
