"""`lamp prompts`: the exact prompts of a generator, for inspection or for another model."""

import json

from tqdm.auto import tqdm

from lamp_jax.inputs.generator import make_prompts
from lamp_jax.inputs.retrieved import read_retrieved
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.options.retrieval import Prompts
from lamp_jax.runs.json_files import atomic_write
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.tasks.catalog import find_task


@guard_outputs
def run(options: Prompts) -> None:
    task = find_task(options.task)
    record = reserve(options.output, options, inputs=[options.merged, options.tokenizer])
    if record.state == "done":
        return print(f"{options.output}: already written")
    questions = read_retrieved(options.merged, task, options, retriever=options.retriever)
    prompts = make_prompts(questions, task, load_tokenizer(options.tokenizer), options, retriever="file")
    fallbacks = 0
    record.begin()
    with atomic_write(record.target) as file:
        for question, prompt in zip(questions, tqdm(prompts, "prompts", len(questions), disable=None), strict=True):
            file.write(json.dumps({"id": question.id, "prompt": prompt.text}, ensure_ascii=False) + "\n")
            fallbacks += prompt.fell_back
    record.finish(prompts=len(questions), bare_inputs=fallbacks)
    print(f"{options.output}: {len(questions)} prompts, {fallbacks} of them without room for any profile item")
