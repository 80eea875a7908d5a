"""Feedback on items by likelihood and by generation, against CTranslate2 and transformers: equal rewards."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lamp_jax.bench.cases import Case, Run, Side, Size, close_numbers, same_rows
from lamp_jax.bench.flops import Products
from lamp_jax.bench.models import SEED, draw_tokens, made_generator, published, tokens_of, word, words_of
from lamp_jax.bench.workers import Workers
from lamp_jax.data.files import Question
from lamp_jax.tasks.catalog import find_task

TASK = find_task("LaMP-4")
BEAMS = 4


@dataclass(frozen=True)
class Trials:
    """Questions with their items, each of which is alone in a prompt."""

    questions: int
    items: int
    reward: Literal["likelihood", "metric"]
    tiny: bool = False
    words: tuple[int, int] = (40, 200)
    """Smallest and largest number of words of an item's text."""
    longest: int = 256
    new: int = 32
    batch: int = 16

    @property
    def name(self) -> str:
        kind = "likelihood" if self.reward == "likelihood" else f"beam {BEAMS}, {self.new} new"
        return f"{kind}: {self.questions} questions x {self.items} items, at most {self.longest} tokens"


SIZES: dict[Size, tuple[Trials, ...]] = {
    "smoke": (
        Trials(2, 3, "likelihood", tiny=True, words=(4, 20), longest=32, batch=4),
        Trials(1, 4, "metric", tiny=True, words=(4, 20), longest=32, new=6, batch=4),
    ),
    "full": (Trials(6, 16, "likelihood"), Trials(2, 16, "metric")),
}


class Pair(NamedTuple):
    """Prompt with one item, and the question's reference, as token ids."""

    source: Sequence[int]
    target: Sequence[int]


def cases(size: Size, folder: Path, workers: Workers) -> Iterator[Case]:
    """Cases of the size; the model is written below `folder`."""
    for trials in SIZES[size]:
        config = published("t5-small", tiny=trials.tiny)
        directory = made_generator(workers, folder / "model", config)
        questions = draw_questions(trials, config.vocab_size)
        pairs: list[Pair] = workers.of("lamp").call(make_pairs, directory, questions, trials)
        products = Products(config)
        if trials.reward == "likelihood":
            flops = sum(products.forward(len(one.source), len(one.target)) for one in pairs)
            kinds = (("transformers", transformers_likelihoods), ("ctranslate2", ctranslate2_likelihoods))
            agree = partial(close_numbers, relative=1e-4)
        else:
            flops = sum(products.beam(len(one.source), trials.new, BEAMS) for one in pairs)
            kinds = (("ctranslate2", ctranslate2_answers),)
            agree = partial(same_rows, least=1.0 if trials.tiny else 0.9)
        peers = [Side(name, partial(run, directory, pairs, trials)) for name, run in kinds]
        ours = Side("lamp", partial(lamp_feedback, directory, questions, trials))
        yield Case(trials.name, ours, peers, agree, flops=flops)


def draw_questions(trials: Trials, vocabulary: int) -> list[Question]:
    """Questions whose items differ in length."""
    rng = np.random.default_rng(SEED)

    def text(low: int, high: int) -> str:
        return " ".join(map(word, draw_tokens(rng, int(rng.integers(low, high)), vocabulary)[:-1]))

    def item(place: int) -> dict[str, str]:
        return {"id": str(place), "title": text(4, 12), "text": text(*trials.words)}

    return [
        Question(
            str(number), TASK.input_for(text(*trials.words)), tuple(map(item, range(trials.items))), None, text(8, 16)
        )
        for number in range(trials.questions)
    ]


def make_pairs(directory: str, questions: Sequence[Question], trials: Trials) -> list[Pair]:
    """Prompts that `lamp.feedback` makes, for the peers."""
    import lamp_jax as lamp
    from lamp_jax.inputs.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(directory)
    alone = [
        replace(question, id=f"{question.id}-{item['id']}", profile=(item,))
        for question in questions
        for item in question.profile
    ]
    prompts = lamp.prompts(alone, TASK, tokenizer, num_retrieved=1, max_length=trials.longest)
    targets = tokenizer([one.output for one in alone]).input_ids
    return [Pair(prompt.tokens, target) for prompt, target in zip(prompts, targets, strict=True)]


def lamp_feedback(directory: str, questions: Sequence[Question], trials: Trials) -> Run:
    """Rewards of `lamp.feedback` by likelihood; else the answers whose metric is the reward."""
    import lamp_jax as lamp

    model = lamp.load(directory)
    options: dict[str, Any] = {"profile_size": trials.items, "num_beams": BEAMS, "batch_size": trials.batch}
    options |= {"generation_max_length": trials.new + 1, "max_length": trials.longest}

    def run() -> list[Any]:
        rows = lamp.feedback(model, questions, TASK, reward=trials.reward, **options)
        return [row.reward if trials.reward == "likelihood" else tokens_of(row.output or "") for row in rows]

    return run


def transformers_likelihoods(directory: str, pairs: Sequence[Pair], trials: Trials) -> Run:
    """Mean log-probabilities of the references, in batches of similar length."""
    import torch

    from lamp_jax.bench.torch_side import load_peer, padded

    model = load_peer(directory)
    order = sorted(range(len(pairs)), key=lambda place: len(pairs[place].source))

    @torch.inference_mode()
    def run() -> list[float]:
        found = [0.0] * len(pairs)
        for start in range(0, len(order), trials.batch):
            places = order[start : start + trials.batch]
            source, target = (padded([pairs[place][side] for place in places], "cpu") for side in (0, 1))
            logits = model(input_ids=source, attention_mask=source != 0, labels=target).logits
            each = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none")
            real = target != 0
            means = (each * real).sum(1) / real.sum(1)
            for place, value in zip(places, means.tolist(), strict=True):
                found[place] = value
        return found

    return run


def ctranslate2_likelihoods(directory: str, pairs: Sequence[Pair], trials: Trials) -> Run:
    from lamp_jax.bench.ctranslate2_side import open_translator

    translator = open_translator(directory, "float32")
    sources, targets = ([words_of(pair[side]) for pair in pairs] for side in (0, 1))
    targets = [one[:-1] for one in targets]  # it adds </s>

    def run() -> list[float]:
        scored = translator.score_batch(sources, targets, max_batch_size=trials.batch)
        return [float(np.mean(one.log_probs)) for one in scored]

    return run


def ctranslate2_answers(directory: str, pairs: Sequence[Pair], trials: Trials) -> Run:
    from lamp_jax.bench.ctranslate2_side import answers, open_translator

    translator, sources = open_translator(directory, "float32"), [pair.source for pair in pairs]
    return answers(translator, sources, beams=BEAMS, new=trials.new, batch=trials.batch)
