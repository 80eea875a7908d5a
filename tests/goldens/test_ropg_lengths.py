"""ROPG with separate maximum lengths of queries and documents: loss and gradients equal to PyTorch's."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lamp_jax.inputs.candidate_batches import CandidateBatches
from lamp_jax.inputs.reader import TextReader
from lamp_jax.inputs.retriever import ScoredQuestion, make_candidates
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.models.bert import NO_TOKEN
from lamp_jax.models.weights import load_bert
from lamp_jax.options import CORRECT, REFERENCE, Encoding, TrainRetriever
from lamp_jax.steps.retriever import choose_objective, score_candidates
from lamp_jax.tasks.catalog import find_task
from lamp_jax.training.retriever import choose_form, find_start
from tests.goldens.cases import CASES

torch = pytest.importorskip("torch", reason="needs PyTorch, of the extra `parity`")

pytestmark = [pytest.mark.slow, pytest.mark.parity]

BERT = CASES / "tiny" / "bert"
WORDS = ["river", "stone", "cloud", "ember", "frost", "maple", "harbor", "lantern", "meadow", "violet"]
ITEMS, TEMPERATURE = 4, 0.8
COUNTS = (4, 2, 4, 1, 3)
"""Documents of the five questions."""


def make_scored():
    draw = random.Random(0)

    def text(longest):
        return " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))

    for number, count in enumerate(COUNTS):
        rewards = np.array([draw.random() for _ in range(count)], np.float32)
        yield ScoredQuestion(str(number), text(60), tuple(text(90) for _ in range(count)), rewards, "")


def expected(scored, options, lengths):
    """The mean loss and the gradient's norm by PyTorch, one question at a time."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(BERT), AutoModel.from_pretrained(BERT).eval()

    def embed(text, length):
        given = tokenizer([text], truncation=True, max_length=length, return_tensors="pt")
        hidden = model(**given).last_hidden_state[0]
        if options.encoding.pooling != ("cls",):
            return hidden.mean(0)
        return hidden[0] / hidden[0].norm()

    losses = []
    for one in scored:
        missing = ITEMS - len(one.documents) if options.compatibility.ropg == "padded" else 0
        texts, rewards = [*one.documents, *[""] * missing], torch.tensor([*one.rewards, *[0.0] * missing])
        query = embed(one.query, lengths[0])
        scores = torch.stack([embed(text, lengths[1]) @ query for text in texts])
        wanted = torch.softmax(rewards / TEMPERATURE, 0)
        if options.compatibility.ropg == "padded":
            found = torch.log_softmax(torch.softmax(scores / TEMPERATURE, 0), 0)
            losses.append(-(wanted * found).sum())
        else:
            found = torch.log_softmax(scores / TEMPERATURE, 0)
            losses.append((wanted * (wanted.log() - found)).sum() * TEMPERATURE**2)
    loss = torch.stack(losses).mean()
    loss.backward()
    squares = sum(float((p.grad.double() ** 2).sum()) for p in model.parameters() if p.grad is not None)
    return loss.item(), squares**0.5


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("lengths", [(64, 96), (96, 32), (16, 16)])
@pytest.mark.parametrize("compatibility", [CORRECT, REFERENCE], ids=["masked", "padded"])
def test_loss_and_gradient_equal_pytorch(compatibility, lengths, pooling):
    form = {"pooling": ("cls",), "normalize": True} if pooling == "cls" else {}
    options = TrainRetriever(
        task="LaMP-2",
        questions="",
        feedback=(),
        output="",
        encoder=str(BERT),
        profile_size=ITEMS,
        score_temperature=TEMPERATURE,
        reward_temperature=TEMPERATURE,
        encoding=Encoding(query_length=lengths[0], document_length=lengths[1], **form),
        compatibility=compatibility,
    )
    scored = list(make_scored())
    reader = TextReader(load_tokenizer(BERT), choose_form(options, find_start(options.encoder)))
    examples = make_candidates(
        options, find_task("LaMP-2"), scored, reader, [0.0] * len(scored), compatibility=options.compatibility
    )
    assert max(len(one.texts[0]) for one in examples) == lengths[0]
    assert max(len(text) for one in examples for text in one.documents) == lengths[1]
    longest = reader.settings.longest
    batches = CandidateBatches(examples, batch_size=len(scored), max_length=longest, pad=NO_TOKEN, seed=0)
    tokens, rewards, mask, baseline = batches[0]
    graph, params = nnx.split(load_bert(BERT))

    def loss(params):
        scores = score_candidates(nnx.merge(graph, params), tokens, reader.settings, reader.skips)
        objective = choose_objective(options, compatibility=options.compatibility)
        return jnp.mean(objective(scores, rewards, mask, baseline, jax.random.key(0)))

    with jax.default_matmul_precision("highest"):
        found, gradient = jax.jit(jax.value_and_grad(loss))(params)
    wanted, norm = expected(scored, options, lengths)
    assert float(found) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert float(optax.tree.norm(gradient)) == pytest.approx(norm, rel=1e-3, abs=1e-6)
