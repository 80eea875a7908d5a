"""The commands that train a generator, let it answer, and score answers."""

from dataclasses import dataclass
from typing import Literal

from lamp_jax.config import CORRECT, Answering, Compatibility, Learning, Prompting, Retriever, Storage
from lamp_jax.options.shared import Compatible, Computes, Writes


@dataclass(frozen=True)
class Scratch:
    """The size of a model that is trained from scratch (`--model scratch`); FLAN-T5's architecture."""

    d_model: int = 128
    """Width."""
    d_ff: int = 256
    """Width of the feed-forward layers."""
    num_layers: int = 2
    """Layers of the encoder."""
    num_decoder_layers: int = 2
    """Layers of the decoder."""
    num_heads: int = 4
    """Attention heads, each of d_model / num_heads."""
    vocab_size: int = 4096
    """Pieces of the tokenizer, which is trained on the prompts and answers of the train file."""
    dropout: float = 0.1
    """Dropout rate."""


@dataclass(frozen=True)
class Train(Writes, Compatible, Computes):
    """Fine-tune T5 / FLAN-T5, or train one from scratch, with or without profiles."""

    task: str
    """Task, e.g. LaMP-3."""
    train: str
    """Questions with golds, as `lamp merge` writes them; or a part of a data set of `lamp tfds`, `DIRECTORY/train`."""
    validation: str
    """Questions with golds by which the best checkpoint is chosen."""
    output: str
    """Directory of the run: a Hugging Face model directory, beside it logs and the checkpoint for resuming."""
    model: str = "google/flan-t5-base"
    """Model directory or hub name to start from; `scratch` for a new model of the size below."""
    scratch: Scratch = Scratch()
    retrievers: tuple[Retriever, ...] = ("file",)
    """Who orders the profiles in the train prompts; with several, every question is read once with each."""
    prompting: Prompting = Prompting()
    profile_targets: int = 0
    """Further train examples from each profile: its newest N items, each with only the items before it."""
    learning: Learning = Learning()
    seed: int = 0
    """Seed of initialisation, dropout, order of examples and the `random` retriever."""
    validation_size: int = 0
    """Validation questions that are answered at each evaluation (the first ones); 0 is all."""
    workers: int = 0
    """Processes that prepare examples; 0: one a core where there are many questions, threads where there are few."""
    answering: Answering = Answering()


@dataclass(frozen=True)
class Generate(Writes, Compatible, Computes):
    """Answer questions with a model; where golds are known, also score the answers."""

    task: str
    """Task, e.g. LaMP-3."""
    questions: str
    """Questions, official or merged."""
    model: str
    """Model directory or hub name."""
    output: str
    """Predictions in the official format; `.scores.json` beside it where golds are known."""
    golds: str = ""
    """Outputs file, where the questions do not hold their golds."""
    retriever: Retriever = "file"
    """Who orders the profile: `file` keeps the order it has (`lamp merge` ranked it), `none` leaves the profile out,
    `recency+dense` takes half from the file's (dense) order and half from the newest."""
    seed: int = 0
    """Seed of the `random` retriever."""
    batch_size: int = 16
    """Questions in one batch, over all devices."""
    adapters: str = ""
    """Store of `lamp train-adapters`: every question is answered with its own user's adapter, or if there is none by
    the model as it is."""
    storage: Storage = "float32"
    """How the model's matrices lie in memory."""
    prompting: Prompting = Prompting()
    answering: Answering = Answering()


@dataclass(frozen=True)
class Evaluate(Writes):
    """Score predictions with the official metrics: one task's two files, or two zips with files of several tasks."""

    output: str
    """The JSON file to write: means, confidence interval and per-sample scores of every task."""
    task: str = ""
    """Task of `--golds` and `--predictions`, as `LaMP-3` or `LaMP_3`; empty: the one that the golds name."""
    golds: str = ""
    """An outputs file: `{"task", "golds": [{"id", "output"}]}`."""
    predictions: str = ""
    """A prediction file, of the same form."""
    golds_zip: str = ""
    """Instead of `--golds`: a zip of outputs files, in any folders; each names its task inside."""
    predictions_zip: str = ""
    """Instead of `--predictions`: a zip of prediction files."""
    metrics: tuple[Literal["bleu", "meteor", "rouge-2", "rouge-lsum"], ...] = ()
    """Metrics beside the official ones, for the tasks that generate text. BLEU is from 0 to 100, the others to 1;
    METEOR needs nltk's data on this machine."""
    out_of_range: Literal["keep", "clip"] = "keep"
    """Numbers beyond a LaMP-3 scale: as they are (official), or as the nearest end of the scale (1 or 5)."""
    compatibility: Compatibility = CORRECT
    """Where to follow the public code instead of the papers; only `rouge` matters here."""
