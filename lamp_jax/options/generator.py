"""Options of the commands that train a generator, generate answers and score them."""

from dataclasses import dataclass
from typing import Literal

from lamp_jax.config import CORRECT, Answering, Compatibility, Learning, Prompting, Storage
from lamp_jax.options.shared import ChosenRetriever, ChosenRetrievers, Compatible, Computes, Writes


@dataclass(frozen=True)
class Scratch:
    """Size of a generator trained from scratch (`--model scratch`), with FLAN-T5's architecture."""

    d_model: int = 128
    """Width."""
    d_ff: int = 256
    """Width of the feed-forward layers."""
    num_layers: int = 2
    """Layers of the encoder."""
    num_decoder_layers: int = 2
    """Layers of the decoder."""
    num_heads: int = 4
    """Attention heads, each of size d_model / num_heads."""
    vocab_size: int = 4096
    """Vocabulary size of the tokenizer, which is trained on the prompts and answers of the train file."""
    dropout: float = 0.1
    """Dropout rate."""


@dataclass(frozen=True)
class Train(Writes, Compatible, Computes):
    """Fine-tune T5 / FLAN-T5, or train one from scratch, with or without profiles."""

    task: str
    """Task, e.g. LaMP-3."""
    train: str
    """Questions with references, written by `lamp merge`; or a split of a dataset written by `lamp tfds`,
    `DIRECTORY/train`."""
    validation: str
    """Questions with references; the best checkpoint is selected on them."""
    output: str
    """Output directory: a Hugging Face model directory with logs and checkpoints for resuming."""
    model: str = "google/flan-t5-base"
    """Model directory or hub name of the initial model; `scratch` for a new model of the size below."""
    scratch: Scratch = Scratch()
    retrievers: ChosenRetrievers = ("file",)
    prompting: Prompting = Prompting()
    profile_targets: int = 0
    """Number of additional train examples per profile: its newest N items, each with only the items before it as
    profile."""
    learning: Learning = Learning()
    seed: int = 0
    """Random seed of initialization, dropout, the order of examples and the `random` retriever."""
    validation_size: int = 0
    """Number of validation questions per evaluation, from the first; 0: all."""
    workers: int = 0
    """Processes that prepare examples; 0: one per core for many questions, threads for few."""
    answering: Answering = Answering()


@dataclass(frozen=True)
class Generate(Writes, Compatible, Computes):
    """Generate answers to questions; with references, also score them."""

    task: str
    """Task, e.g. LaMP-3."""
    questions: str
    """Questions, official or merged."""
    model: str
    """Model directory or hub name."""
    output: str
    """Prediction file in the official format; with references, `.scores.json` is written beside it."""
    golds: str = ""
    """Outputs file with the references, if the questions file has none."""
    retriever: ChosenRetriever = "file"
    seed: int = 0
    """Random seed of the `random` retriever."""
    batch_size: int = 16
    """Questions per batch, over all devices."""
    adapters: str = ""
    """Adapter store of `lamp train-adapters`: each question is answered with its user's adapter, or with the base model
    if the user has none."""
    storage: Storage = "float32"
    """Data type of the model's matrices in memory."""
    prompting: Prompting = Prompting()
    answering: Answering = Answering()


@dataclass(frozen=True)
class Evaluate(Writes):
    """Score predictions with the official metrics: the two files of one task, or two zip files of several tasks."""

    output: str
    """JSON file to write: means, confidence intervals and per-sample scores of each task."""
    task: str = ""
    """Task of `--golds` and `--predictions`, as `LaMP-3` or `LaMP_3`; empty: the task named in the outputs file."""
    golds: str = ""
    """Outputs file with the references: `{"task", "golds": [{"id", "output"}]}`."""
    predictions: str = ""
    """Prediction file, of the same format."""
    golds_zip: str = ""
    """Instead of `--golds`: a zip file of outputs files, in any folders; each names its task."""
    predictions_zip: str = ""
    """Instead of `--predictions`: a zip file of prediction files."""
    metrics: tuple[Literal["bleu", "meteor", "rouge-2", "rouge-lsum"], ...] = ()
    """Additional metrics for the tasks that generate text. BLEU ranges from 0 to 100, the others from 0 to 1; METEOR
    needs nltk's data on this machine."""
    out_of_range: Literal["keep", "clip"] = "keep"
    """Predictions outside LaMP-3's scale: `keep` (official), or `clip` to its nearest end (1 or 5)."""
    compatibility: Compatibility = CORRECT
    """Settings that follow the public code instead of the papers; only `rouge` applies here."""
