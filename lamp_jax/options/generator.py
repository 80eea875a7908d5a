"""Options of the commands that train a generator, generate answers and score them."""

from dataclasses import dataclass, field
from typing import Literal

from lamp_jax.config import CORRECT, Answering, Compatibility, Prompting, Storage
from lamp_jax.options.shared import ChosenRetriever, ChosenRetrievers, Compatible, Computes, Writes
from lamp_jax.settings import GeneratorTraining


@dataclass(frozen=True)
class Train(GeneratorTraining, Writes, Computes):
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
    """Model directory or hub name of the initial model; `scratch` for a new model of the size of `scratch`."""
    retrievers: ChosenRetrievers = field(default=("file",), kw_only=True)  # with the help text of all names
    workers: int = 0
    """Processes that prepare examples; 0: one per core for many questions, threads for few."""


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
