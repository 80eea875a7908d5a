"""`lamp merge`: questions whose profiles stand in a ranking's order, with their golds, in one file."""

from tqdm import tqdm

from lamp_jax.config import Merge
from lamp_jax.data.files import add_outputs, read_outputs, read_questions, write_questions
from lamp_jax.data.records import claim
from lamp_jax.retrieval.ranking import apply_rankings, read_rankings


def run(options: Merge) -> None:
    inputs = [name for name in (options.questions, options.outputs, options.ranking) if name]
    record = claim(options.output, options, inputs=inputs)
    if record.state == "done":
        return print(f"{options.output}: already merged")
    questions = read_questions(options.questions)
    if options.outputs:
        questions = add_outputs(
            questions, read_outputs(options.outputs).by_id, left=options.questions, right=options.outputs
        )
    if options.ranking:
        questions = apply_rankings(questions, read_rankings(options.ranking))
    count = write_questions(options.output, tqdm(questions, "merge", disable=None))
    record.finish(questions=count)
    print(f"{options.output}: {count} questions")
