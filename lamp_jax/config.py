"""Options that several commands and the library share, as frozen dataclasses."""

from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True)
class Compatibility:
    """Differences between the papers' public code and the papers or sound practice, as options.

    The defaults are correct; `REFERENCE` has the public code's values. Recorded in every output.
    """

    lamp1_query: Literal["template", "quotes"] = "template"
    """LaMP-1's two references: parsed by the template's delimiters, or as the second and third quoted string."""
    item_text: Literal["original", "decoded"] = "original"
    """Profile text in prompts: original, cut at token boundaries, or decoded by the generator's tokenizer."""
    zero_budget: Literal["nothing", "whole"] = "nothing"
    """Text of an item whose budget is exactly 0 tokens: none, or all of it."""
    overlong: Literal["middle", "tail"] = "middle"
    """Truncation of a prompt over the maximum length: in the middle of the question, or at the end of the prompt."""
    lamp5_phrase: Literal["a title", "the title"] = "a title"
    """Template of LaMP-5's items: `is a title for` (public code), or `is the title for` (the ROPG paper's Table 2)."""
    rouge: Literal["mean", "bootstrap"] = "mean"
    """ROUGE over all samples: the mean, or the median of 1000 bootstrap means (seeded)."""
    halves: Literal["distinct", "doubled"] = "distinct"
    """Items of `recency+dense`: exactly K distinct items, equal dates in dense order; or K // 2 of both kinds, with
    duplicates, equal dates in reverse dense order (and for K = 1 the entire profile)."""
    ropg: Literal["masked", "padded"] = "masked"
    """ROPG's losses: over the real items of a question, with the KL divergence for `kd`; or over profiles padded with
    empty documents, with the cross-entropy of a softmax of probabilities for `kd`, and the first item of the file as
    the baseline for `rl`."""

    patches: tuple[str, ...] = ("lamp2-dev-110",)
    """Known defects of published files that are fixed on reading (`lamp check` lists them)."""
    selector_case: Literal["cased", "lower"] = "cased"
    """Case of a selector's input: unchanged, or lower case."""
    selector_cut: Literal["prompt", "end"] = "prompt"
    """Truncation of a prompt with its output (`--mode post`): of the prompt, or of the end, which is the output."""
    selector_first_token: Literal["global", "local"] = "global"
    """Attention of a selector's first token, which is pooled: to all tokens, or to its local window only."""
    selector_temperature: Literal["both", "loss"] = "both"
    """Use of a selector's temperature: it divides scores and rewards; or log-probabilities, and so the loss."""
    tweet_start: Literal["some", "rounded"] = "some"
    """Beginning of a LaMP-7 tweet as the input of adapter training: a tenth to a quarter of the words, but at least one
    of two or more; or that share rounded down, which is empty for short tweets."""

    def __repr__(self) -> str:
        """The differences from the defaults, as in `Compatibility(rouge='bootstrap')`."""
        values = ((field.name, getattr(self, field.name), field.default) for field in fields(self))
        return f"Compatibility({', '.join(f'{name}={value!r}' for name, value, default in values if value != default)})"


CORRECT = Compatibility()

REFERENCE = Compatibility(
    lamp1_query="quotes",
    item_text="decoded",
    zero_budget="whole",
    overlong="tail",
    rouge="bootstrap",
    halves="doubled",
    ropg="padded",
    patches=(),
    selector_case="lower",
    selector_cut="end",
    selector_first_token="local",
    selector_temperature="loss",
    tweet_start="rounded",
)

Decoding = Literal["beam", "greedy", "labels"]

Profiles = Literal["single", "first", "union"]
"""Profile of a user with several questions: that of all, which must be equal; that of the first question, as in the
public code; or the union of all, each item once."""

Storage = Literal["float32", "bfloat16", "int8"]
"""Data type in memory of the matrices of a frozen model; int8 has one scale per output, and bfloat16 embeddings."""

Split = Literal["user", "time"]
"""LaMP's two separations: by user, each in one file only; or by time, with each user's items in chronological
order."""

SCRATCH = "scratch"
"""Value of `--model` or `--encoder` for a new model, instead of a directory or hub name."""


@dataclass(frozen=True)
class Prompting:
    """Number of profile items and length of a generator's prompts."""

    num_retrieved: int = 4
    """Number of profile items in a prompt; 0: the bare input."""
    max_length: int = 512
    """Maximum prompt length in tokens, `</s>` included."""
    use_date: bool = False
    """Append ` date: ...` to the documents that this command ranks."""


@dataclass(frozen=True)
class Answering:
    """Decoding of a model's answers."""

    decode: Decoding = "beam"
    """`beam` or `greedy` generation, or `labels`: the most probable label of the task, without generation (label
    tasks only)."""
    num_beams: int = 4
    """Number of beams of `beam`."""
    generation_max_length: int = 128
    """Maximum answer length in tokens, the start token included (128: at most 127 new tokens)."""
    generation_config: Literal["model", "none"] = "model"
    """Further settings of `beam` and `greedy`: the model's `generation_config.json`, as in Hugging Face's `generate`
    (its `max_new_tokens` overrides the option above, its `num_beams` and `max_length` do not); or none."""


@dataclass(frozen=True)
class Devices:
    """Devices, sharding and precision of a run. All but `dtype` (see EXECUTION_ONLY) may change when it is resumed."""

    data_parallel: int = -1
    """Size of the mesh's data axis; -1: all devices, divided by the size of the model axis."""
    model_parallel: int = 1
    """Size of the mesh's model axis (tensor parallelism)."""
    cpu_devices: int = 1
    """Number of virtual CPU devices, if there is no accelerator; 0: one per core. The batch size must be divisible by
    the size of the data axis."""
    sharding: Literal["data", "fsdp", "tensor", "fsdp+tensor"] = "data"
    """Sharded arrays: batches only (`data`); or also parameters, over the data axis (`fsdp`), over the model axis
    (`tensor`), or over both."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the computation; parameters, softmax, norms, losses and logits are always float32."""
    remat: Literal["none", "full", "attention"] = "none"
    """Rematerialization, for less memory and more time: `full` recomputes each layer in the backward pass, `attention`
    all of it but the results of attentions, which are small and dear."""
    compilation_cache: str = ""
    """Directory that keeps compiled programs for later commands; `off`: none. Empty: that of LAMP_COMPILATION_CACHE, or
    else `lamp/compiled` in the user's cache directory."""


EXECUTION_ONLY = frozenset({"data_parallel", "model_parallel", "cpu_devices", "sharding", "remat", "log_every"})
EXECUTION_ONLY |= {"compilation_cache"}
"""Execution-only options, which change where a result is computed or what is logged: excluded from the fingerprint."""


@dataclass(frozen=True)
class Optimization:
    """Settings of the optimizer and its schedule."""

    epochs: float = 10.0
    """Passes over the train examples or questions; fractions are allowed."""
    batch_size: int = 16
    """Examples or questions per update, over all devices and accumulation steps; for adapters, per user."""
    learning_rate: float = 5e-5
    """Peak learning rate, after linear warm-up and before linear decay to 0."""
    step_size: Literal["absolute", "relative"] = "absolute"
    """`relative` multiplies each tensor's update by the root mean square of its values, as Adafactor does, T5's own
    optimizer. Training from scratch needs it, with a learning rate around 0.02."""
    warmup_ratio: float = 0.05
    """Fraction of the updates in the warm-up."""
    weight_decay: float = 1e-4
    """Weight decay of AdamW, on matrices and embeddings only; 0: Adam."""
    clip: float = 1.0
    """Maximum global norm of the gradient."""


@dataclass(frozen=True)
class Learning(Optimization):
    """Training settings of all models but adapters."""

    accumulation: int = 1
    """Gradient-accumulation steps per update; the gradient is the mean over the entire batch."""
    evaluate_every: float = 1.0
    """Epochs between evaluations, each of which also saves a checkpoint for resuming."""
    patience: int = 0
    """Evaluations without a better score before training stops early; 0: no early stopping."""
    log_every: float = 5.0
    """Seconds between losses logged to `metrics.jsonl`; 0 logs that of every update, and waits for each update."""


@dataclass(frozen=True)
class Lora:
    """LoRA settings: low-rank additions to a frozen model's projections."""

    rank: int = 8
    """Rank of the additions."""
    alpha: float = 32.0
    """Scale of the additions, which are multiplied by alpha / rank."""
    targets: tuple[str, ...] = ("q", "k", "v")
    """Projections with an addition, in all layers; any of q, k, v, o, wi (T5 1.0), wi_0, wi_1, wo."""
    dropout: float = 0.1
    """Dropout rate of the additions' inputs; the model's own dropout rate is that of its config."""


PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
"""Pooling of a text's hidden states: that of the first or last token; or the maximum, the mean, the sum divided by the
square root of the number of tokens, or the position-weighted mean, of all. Names as in sentence-transformers."""

Similarity = Literal["dot", "cosine"]


@dataclass(frozen=True)
class Encoding:
    """Settings of an encoder's vectors that replace those of the encoder's own files.

    These files are lamp's `retriever.json` and sentence-transformers' `modules.json` with the files it lists. Without
    either, vectors are mean-pooled and not normalized, without prompts.
    """

    pooling: tuple[PoolingMode, ...] = ()
    """Pooling of hidden states; several are concatenated. Default: that of the encoder's files."""
    normalize: bool | None = None
    """Normalize vectors to length 1; default: as in the encoder's files."""
    query_prompt: str | None = None
    """Text before every query, such as `query: ` for E5, or `""` for none; default: that of the encoder's files."""
    document_prompt: str | None = None
    """Text before every document, such as `passage: ` for E5; default: that of the encoder's files."""
    query_length: int | None = None
    """Maximum query length in tokens, special tokens and prompt included; default: `--max-length`."""
    document_length: int | None = None
    """Maximum document length in tokens, special tokens and prompt included; default: `--max-length`."""
    similarity: Similarity | None = None
    """Similarity of a query's and a document's vector; default: that of the encoder's files, or the dot product."""


@dataclass(frozen=True)
class ScratchEncoder:
    """Size of an encoder trained from scratch (`--encoder scratch`), with BERT's architecture."""

    hidden_size: int = 128
    """Width."""
    intermediate_size: int = 256
    """Width of the feed-forward layers."""
    num_layers: int = 2
    """Number of layers."""
    num_heads: int = 4
    """Number of attention heads."""
    vocab_size: int = 4096
    """Vocabulary size of the tokenizer, which is trained on the texts of the run."""
    dropout: float = 0.1
    """Dropout rate."""


SelectorMetric = Literal["accuracy", "rouge-1", "rouge-l", "mae"]

SelectorMode = Literal["pre", "post"]


@dataclass(frozen=True)
class Work:
    """Workers of a command that reads long files; the output does not depend on them."""

    workers: int = 0
    """Number of processes; 0: one per core."""
    beam_runner: Literal["none", "DirectRunner", "DaskRunner", "FlinkRunner", "SparkRunner", "DataflowRunner"] = "none"
    """Runner of an Apache Beam pipeline, on several machines with shared files (`pip install lamp_jax[beam]`; for Dask
    `lamp_jax[dask]`)."""
    beam_options: tuple[str, ...] = ()
    """Pipeline options without leading dashes: `direct_num_workers=2 direct_running_mode=multi_processing`, or
    `dask_client_address=tcp://HOST:8786`."""
    beam_staging: str = ""
    """Directory of intermediate results, shared by all machines; empty: this machine's temporary directory."""


Part = Literal["train", "dev", "test"]
