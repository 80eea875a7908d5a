"""Options that several commands and the library share: frozen dataclasses, nothing else."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Compatibility:
    """Where the papers' public code departs from the papers or from what a careful user wants.

    The defaults are right; `REFERENCE` holds the public code's values. Recorded in every output.
    """

    lamp1_query: Literal["template", "quotes"] = "template"
    """LaMP-1's two references: read by the template's delimiters, or as the second and third quoted string."""
    item_text: Literal["original", "decoded"] = "original"
    """Profile text in prompts: as it is, cut between tokens, or as the generator's tokenizer decodes it."""
    zero_budget: Literal["nothing", "whole"] = "nothing"
    """What an item for which exactly no token is left gives: none of its text, or all of it."""
    overlong: Literal["middle", "tail"] = "middle"
    """Where a prompt beyond the maximum length is cut: in the middle of the question, or at its end."""
    lamp5_phrase: Literal["a title", "the title"] = "a title"
    """LaMP-5's items: `is a title for` (public code), or `is the title for` (the ROPG paper's Table 2)."""
    rouge: Literal["mean", "bootstrap"] = "mean"
    """ROUGE over samples: the mean, or the median of 1000 bootstrap means (seeded)."""
    halves: Literal["distinct", "doubled"] = "distinct"
    """`recency+dense`: exactly K items, none twice, equal dates in dense order; or K // 2 of both kinds whatever they
    share, equal dates in reverse dense order (and for K = 1 the whole profile)."""
    ropg: Literal["masked", "padded"] = "masked"
    """ROPG's losses over the real items of a question, KL for `kd`; or over profiles padded with empty documents, for
    `kd` the cross-entropy of a softmax of probabilities, for `rl` against the first item of the file."""

    patches: tuple[str, ...] = ("lamp2-dev-110",)
    """Known defects of published files that are mended on reading (`lamp check` names them)."""
    selector_case: Literal["cased", "lower"] = "cased"
    """What a selector reads: prompts as they are, or lower-cased."""
    selector_cut: Literal["prompt", "end"] = "prompt"
    """What gives way where a prompt with its output (`--mode post`) is too long: the prompt; or the end, the output."""
    selector_first_token: Literal["global", "local"] = "global"
    """Whether a selector's first token, which is pooled, reads all others, or those around it alone."""
    selector_temperature: Literal["both", "loss"] = "both"
    """What a selector's temperature divides: scores and rewards; or the log-probabilities, and so the loss."""
    tweet_start: Literal["some", "rounded"] = "some"
    """LaMP-7's tweets that an adapter learns to complete: a tenth to a quarter of the words is given, but at least one
    of two or more; or that share rounded down, which is nothing of short tweets."""


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
"""What a user's history is where several of their questions hold one: all must be equal; the first question's, as in
the public code; or all items of all of them, each once."""

Storage = Literal["float32", "bfloat16", "int8"]
"""How the matrices of a model that is only read lie in memory; int8 has a scale for each output, and bfloat16 for
embeddings."""

Split = Literal["user", "time"]
"""LaMP's two separations: users who are in one part only, or each user's items in the order of time."""

SCRATCH = "scratch"
"""Names a new model where another's directory or hub name may stand."""


@dataclass(frozen=True)
class Prompting:
    """How much of a profile a generator reads."""

    num_retrieved: int = 4
    """Profile items in a prompt; 0 is the bare input."""
    max_length: int = 512
    """Longest prompt, in tokens, `</s>` included."""
    use_date: bool = False
    """Whether documents that are ranked here end in ` date: ...`."""


@dataclass(frozen=True)
class Answering:
    """How a model's answer is found."""

    decode: Decoding = "beam"
    """`beam` or `greedy` generation, or `labels`: score every label of the task, no generation (label tasks only)."""
    num_beams: int = 4
    """Beams of `beam`."""
    generation_max_length: int = 128
    """Longest answer, in tokens, the start token included (so 128 means 127 new tokens)."""
    generation_config: Literal["model", "none"] = "model"
    """What else `beam` and `greedy` follow: the model's `generation_config.json`, as Hugging Face's `generate` does (of
    it, `max_new_tokens` wins over the option above, `num_beams` and `max_length` do not); or nothing."""


@dataclass(frozen=True)
class Devices:
    """How a run lies on its devices. All but `dtype` (see EXECUTION_ONLY) may be another when a run is resumed."""

    data_parallel: int = -1
    """Size of the mesh's data axis; -1 takes all devices that the model axis leaves."""
    model_parallel: int = 1
    """Size of the mesh's model axis (tensor parallelism)."""
    cpu_devices: int = 1
    """As how many devices a CPU counts, where there is no accelerator; 0: one for each core. A batch must divide over
    them."""
    sharding: Literal["data", "fsdp", "tensor", "fsdp+tensor"] = "data"
    """What is spread over the mesh: batches only, parameters over `data`, over `model`, or over both."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters, softmax, norms, losses and logits are float32 in any case."""
    remat: Literal["none", "full"] = "none"
    """`full` recomputes each layer in the backward pass: more time, less memory."""


EXECUTION_ONLY = frozenset({"data_parallel", "model_parallel", "cpu_devices", "sharding", "remat", "log_every"})
"""Execution-only options, which change where a result is computed or what is logged: excluded from the fingerprint."""


@dataclass(frozen=True)
class Optimization:
    """How parameters follow their gradients, and how long."""

    epochs: float = 10.0
    """Passes over the train examples, or questions (a fraction is allowed)."""
    batch_size: int = 16
    """Examples, or questions, in one update, over all devices and accumulation steps; of adapters, one user's."""
    learning_rate: float = 5e-5
    """Peak of the schedule: linear warm-up, then linear decay to 0."""
    step_size: Literal["absolute", "relative"] = "absolute"
    """`relative` multiplies each tensor's update by the size of its values, as T5's own optimizer does: from scratch,
    models hardly learn without (with a rate around 0.02)."""
    warmup_ratio: float = 0.05
    """Share of all updates in the warm-up."""
    weight_decay: float = 1e-4
    """AdamW's, on matrices and embeddings only; 0 is Adam."""
    clip: float = 1.0
    """Largest global norm of a gradient."""


@dataclass(frozen=True)
class Learning(Optimization):
    """How a model's parameters are learned, whatever the model."""

    accumulation: int = 1
    """Parts in which an update's batch is computed; the gradient is the mean over all of it."""
    evaluate_every: float = 1.0
    """Epochs between evaluations, each of which also saves the run for resuming."""
    patience: int = 0
    """Evaluations without a better score after which the run ends; 0 never."""
    log_every: float = 5.0
    """Seconds between the losses that `metrics.jsonl` notes; 0 notes that of every update, which waits for each."""


@dataclass(frozen=True)
class Lora:
    """The form of adapters: low-rank additions to a frozen model's projections."""

    rank: int = 8
    """Rank of the additions."""
    alpha: float = 32.0
    """Additions are multiplied by alpha / rank."""
    targets: tuple[str, ...] = ("q", "k", "v")
    """Projections with an addition, in all layers: of q, k, v, o, wi (T5 1.0), wi_0, wi_1, wo."""
    dropout: float = 0.1
    """Dropout of what the additions read; the model's own dropout is that of its config."""


PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
"""A text's vector: its first or last token's hidden state; the largest, the mean, the sum over the root of the number
of tokens, or the mean weighted by position, of all tokens' hidden states. Names as in sentence-transformers."""

Similarity = Literal["dot", "cosine"]


@dataclass(frozen=True)
class Encoding:
    """The form of an encoder's vectors, where it is not that of the encoder's own files.

    Those are lamp's `retriever.json` and sentence-transformers' `modules.json` with what it names. Where nothing is
    said, vectors are means, not normalized, without prompts.
    """

    pooling: tuple[PoolingMode, ...] = ()
    """Pooling of hidden states; several are concatenated. None named: as the encoder's files say."""
    normalize: bool | None = None
    """Whether vectors have length 1; not given: as the encoder's files say."""
    query_prompt: str | None = None
    """Text before every query, such as `query: ` for E5; not given: as the encoder's files say, `""` for none."""
    document_prompt: str | None = None
    """Text before every document, such as `passage: ` for E5; not given: as the encoder's files say."""
    query_length: int | None = None
    """Longest query, in tokens, special tokens and prompt included; not given: `--max-length`."""
    document_length: int | None = None
    """Longest document, in tokens, special tokens and prompt included; not given: `--max-length`."""
    similarity: Similarity | None = None
    """Score of a document's vector for a query's; not given: as the encoder's files say, or their dot product."""


@dataclass(frozen=True)
class ScratchEncoder:
    """The size of an encoder that is trained from scratch (`--encoder scratch`); BERT's architecture."""

    hidden_size: int = 128
    """Width."""
    intermediate_size: int = 256
    """Width of the feed-forward layers."""
    num_layers: int = 2
    """Layers."""
    num_heads: int = 4
    """Attention heads."""
    vocab_size: int = 4096
    """Pieces of the tokenizer, which is trained on the queries and documents at hand."""
    dropout: float = 0.1
    """Dropout rate."""


SelectorMetric = Literal["accuracy", "rouge-1", "rouge-l", "mae"]

SelectorMode = Literal["pre", "post"]


@dataclass(frozen=True)
class Work:
    """Who does the work of a stage that reads long files; the output does not depend on it."""

    workers: int = 0
    """Processes; 0 takes every core."""
    beam_runner: Literal["none", "DirectRunner", "FlinkRunner", "SparkRunner", "DataflowRunner"] = "none"
    """Runs as an Apache Beam pipeline, on several machines that see the same files (`pip install lamp_jax[beam]`)."""
    beam_options: tuple[str, ...] = ()
    """Options of the pipeline, without their dashes: `direct_num_workers=2 direct_running_mode=multi_processing`."""
    beam_staging: str = ""
    """Directory for results on their way, which all machines see; empty: this machine's place for temporary files."""


Part = Literal["train", "dev", "test"]
