"""What a run is: frozen dataclasses, nothing else."""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional, Suppress


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

Retriever = Literal["file", "none", "bm25", "recency", "random", "recency+dense"]
"""Who orders a profile: the file's own order, nobody (the bare input), or one of the rankers.

`recency+dense` reads half of the items from the file's order, which is then that of a dense ranking, and half from the
newest.
"""
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
    """How a run lies on its devices. All but `dtype` (see PLACEMENT) may be another when a run is resumed."""

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


PLACEMENT = frozenset({"data_parallel", "model_parallel", "cpu_devices", "sharding", "remat", "log_every"})
"""Options that say where a result is computed and what is told of it, not which: they tell no two commands apart."""


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
class Train:
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
    devices: Devices = Devices()
    compatibility: Compatibility = CORRECT
    force: bool = False
    """Start over where the output already exists."""


@dataclass(frozen=True)
class Generate:
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
    devices: Devices = Devices()
    compatibility: Compatibility = CORRECT
    force: bool = False
    """Start over where the output already exists."""


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


@dataclass(frozen=True)
class TrainAdapters:
    """Train one LoRA adapter per user on the user's own profile, many users at once over one frozen model."""

    task: str
    """Task, e.g. LaMP-3."""
    questions: str
    """Questions whose profiles the adapters learn; golds are not read (but by `--shared questions`)."""
    output: str
    """Directory of the store: all adapters in one set of files, beside it logs."""
    model: str = "google/flan-t5-base"
    """Model directory or hub name of the base, which stays as it is."""
    profiles: Profiles = "single"
    """What a user with several questions learns."""
    shared: Literal["no", "profiles", "questions"] = "no"
    """One adapter for everybody instead: of all users' profiles, or of the questions and golds without profiles (a
    model that knows the task and no user)."""
    users_per_step: int = 64
    """Users who learn at the same time, over all devices."""
    tokens_per_device: int = 4096
    """Tokens, padding included, that a device computes at once; an update is computed in as many parts as it takes."""
    max_length: int = 512
    """Longest input, in tokens, `</s>` included."""
    target_length: int = 512
    """Longest answer, in tokens, `</s>` included."""
    lora: Lora = Lora()
    learning: Optimization = Optimization(epochs=30.0)
    keep: Literal["float32", "bfloat16"] = "float32"
    """Type of the adapters in the store."""
    storage: Storage = "float32"
    """How the base's matrices lie in memory."""
    seed: int = 0
    """Seed of the adapters' first values, of the order of examples, of dropout and of where LaMP-7's tweets are cut."""
    devices: Devices = Devices()
    compatibility: Compatibility = CORRECT
    force: bool = False
    """Start over where the output already exists."""


@dataclass(frozen=True)
class ExportAdapter:
    """Write one user's adapter as a directory of Hugging Face's peft."""

    store: Positional[str]
    """Directory of a store."""
    user: str
    """User id."""
    output: str
    """Directory to write: `PeftModel.from_pretrained(base, DIRECTORY)` loads it."""
    model: str = ""
    """Model directory or hub name of the store's base; empty: as it was named when the store was made."""
    force: bool = False
    """Start over where the output already exists."""


@dataclass(frozen=True)
class ImportAdapter:
    """Add an adapter that Hugging Face's peft saved to a store, which is made where there is none."""

    directory: Positional[str]
    """Directory of the adapter, as `save_pretrained` writes it."""
    store: str
    """Directory of the store."""
    user: str
    """User id that it will have; by the id `everybody` it answers for all who have no adapter of their own."""
    model: str
    """Model directory or hub name of its base."""
    items: int = 0
    """How many examples it was trained on, where that is known."""
    keep: Literal["store", "float32", "bfloat16"] = "store"
    """Type of the adapters in the store: as it has them, or float32 in a new one (another than it has is an error)."""


@dataclass(frozen=True)
class ConvertStore:
    """Make a store of adapters of this version from one of an earlier version, which stays as it is."""

    store: str
    """Directory of the old store."""
    output: str
    """Directory of the new one."""
    force: bool = False
    """Start over where the output already exists."""


@dataclass(frozen=True)
class FeedbackItems:
    """Ask a model each question once with each of its top items, alone in the prompt, and score the answers."""

    task: str
    """Task, e.g. LaMP-3."""
    merged: str
    """Questions with golds, profiles in the order of the retriever whose top items are asked about."""
    model: str
    """Model directory or hub name of the generator."""
    output: str
    """Directory of the feedback: one JSON record for each question and item."""
    profile_size: int = 16
    """Items of each question, from the first on."""
    reward: Literal["metric", "likelihood"] = "metric"
    """What is measured: the task's metrics of a generated answer, or the mean log-probability of the gold's tokens."""
    batch_size: int = 16
    """Pairs of question and item in one batch, over all devices."""
    max_length: int = 512
    """Longest prompt, in tokens, `</s>` included."""
    answering: Answering = Answering()
    export_reference: str = ""
    """Also write the public code's file, `{"qid-pid": {metric: value}}`."""
    shards: int = 1
    """Runs, on machines of their own, that share the questions and the output directory."""
    shard: int = 0
    """Which of them this is, from 0."""
    devices: Devices = Devices()
    compatibility: Compatibility = CORRECT
    force: bool = False
    """Start over where the output already exists."""


@dataclass(frozen=True)
class FeedbackRetrievers:
    """Ask a model each question once with the items of each retriever of a pool, and score the answers."""

    task: str
    """Task, e.g. LaMP-3."""
    pool: tuple[str, ...]
    """The retrievers, two or more: `NAME=FILE`, questions with their profiles in that retriever's order (merged); and
    `none`, the bare input."""
    model: str
    """Model directory or hub name of the generator."""
    output: str
    """Directory of the feedback: one JSON record for each question and retriever."""
    prompting: Prompting = Prompting()
    batch_size: int = 16
    """Prompts in one batch, over all devices."""
    answering: Answering = Answering()
    shards: int = 1
    """Runs, on machines of their own, that share the questions and the output directory."""
    shard: int = 0
    """Which of them this is, from 0."""
    devices: Devices = Devices()
    compatibility: Compatibility = CORRECT
    force: bool = False
    """Start over where the output already exists."""


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


@dataclass(frozen=True)
class TrainRetriever:
    """Train a dense retriever on a generator's feedback: ROPG-KD or ROPG-RL."""

    task: str
    """Task, e.g. LaMP-3."""
    questions: str
    """The questions with golds on which the feedback was made, profiles in the same order."""
    feedback: tuple[str, ...]
    """Directories of `lamp feedback items`, or files of the public code's form."""
    output: str
    """Directory of the run: a Hugging Face encoder directory, beside it logs and the checkpoint for resuming."""
    method: Literal["kd", "rl"] = "kd"
    """Learn the softmax of the rewards (ROPG-KD), or raise the expected reward (ROPG-RL)."""
    encoder: str = "facebook/contriever"
    """Model directory or hub name to start from; `scratch` for a new encoder of the size below."""
    scratch: ScratchEncoder = ScratchEncoder()
    validation: str = ""
    """Questions by whose feedback the best checkpoint is chosen; empty: a part of the questions is held out."""
    validation_feedback: tuple[str, ...] = ()
    """Their feedback."""
    held_out: float = 0.1
    """Share of the questions that is held out where there is no validation file."""
    reward: Literal["metric", "likelihood"] = "metric"
    """Which part of the feedback is the reward: the task's metric (LaMP-3: Eq. 8), or the gold's log-probability."""
    profile_size: int = 16
    """Items of each question, from the first on."""
    reward_at: int = 4
    """The best checkpoint has the highest mean reward of the K items that it ranks first."""
    use_date: bool = True
    """Whether documents end in ` date: ...`; stored beside the encoder, so that ranking does the same."""
    max_length: int | None = None
    """Longest query and document, in tokens, special tokens included; not given: as the encoder's files say, 512 for a
    new encoder and with `--ropg padded` (the public code's two lengths)."""
    encoding: Encoding = Encoding()
    score_temperature: float = 1.0
    """`kd`: what scores are divided by."""
    reward_temperature: float = 1.0
    """`kd`: what rewards are divided by."""
    gradient: Literal["sampled", "expected"] = "sampled"
    """`rl`: REINFORCE with sampled items, or the exact expectation over all items."""
    sampled_items: int = 1
    """`rl`: items drawn for a question, without replacement."""
    learning: Learning = Learning(learning_rate=1e-5, weight_decay=0.0, batch_size=64, accumulation=8)
    seed: int = 0
    """Seed of initialisation, dropout, sampled items, order of questions and of what is held out."""
    devices: Devices = Devices()
    compatibility: Compatibility = CORRECT
    force: bool = False
    """Start over where the output already exists."""


SelectorMetric = Literal["accuracy", "rouge-1", "rouge-l", "mae"]
SelectorMode = Literal["pre", "post"]


@dataclass(frozen=True)
class SelectorData:
    """Write what a selector learns from: each question's candidates, one for each retriever, and their rewards."""

    feedback: str
    """Directory of `lamp feedback retrievers`."""
    questions: str
    """The questions on which the feedback was made, or some of them."""
    output: str
    """The candidates, JSON; the retrievers' names and order are inside."""
    golds: str = ""
    """Outputs file, where the questions do not hold their golds; without any there are no rewards."""
    metric: SelectorMetric | None = None
    """Which metric of the feedback is the reward (MAE by Eq. 8 of the paper); not given: the task's main one."""
    scores: tuple[str, ...] = ()
    """`NAME=FILE` for retrievers of the pool: the scores of their rankings, of which retrieval's success is predicted
    (WIG, NQC, sigma-max, sigma-50)."""
    predictor_items: int = 4
    """How many of the first items WIG and NQC look at."""
    compatibility: Compatibility = CORRECT
    force: bool = False
    """Start over where the output already exists."""


@dataclass(frozen=True)
class ScratchSelector(ScratchEncoder):
    """The size of a selector that is trained from scratch (`--model scratch`); Longformer's architecture."""

    attention_window: int = 512
    """Tokens around a token that it reads, half of them on either side."""


@dataclass(frozen=True)
class TrainSelector:
    """Train a model to choose a question's retriever: RSPG-Pre or RSPG-Post."""

    train: str
    """Candidates with rewards, of `lamp selector-data`."""
    validation: str
    """Candidates with rewards by which the best checkpoint is chosen."""
    output: str
    """Directory of the run: a Hugging Face model directory, beside it logs and the checkpoint for resuming."""
    mode: SelectorMode = "post"
    """What is read: the prompt with a retriever's items (RSPG-Pre), or that and the answer to it (RSPG-Post)."""
    model: str = "allenai/longformer-base-4096"
    """Model directory or hub name to start from; `scratch` for a new model of the size below."""
    scratch: ScratchSelector = ScratchSelector()
    temperature: float = 1.0
    """What scores and rewards are divided by."""
    max_length: int | None = None
    """Longest text in tokens, special tokens included; not given: 1024 (with `--selector-cut end`: 512)."""
    learning: Learning = Learning(epochs=20, learning_rate=1e-5, weight_decay=0.0, batch_size=64, accumulation=8)
    seed: int = 0
    """Seed of initialisation, dropout and order of questions."""
    devices: Devices = Devices()
    compatibility: Compatibility = CORRECT
    force: bool = False
    """Start over where the output already exists."""


@dataclass(frozen=True)
class Select:
    """Choose each question's retriever, and with it the answer; where golds are known, also score the choice."""

    data: str
    """Candidates, of `lamp selector-data`."""
    output: str
    """Predictions in the official format, the retriever's name beside each; `.scores.json` where golds are known."""
    selector: str = ""
    """Directory of `lamp train-selector`."""
    by: Literal["selector", "best", "worst", "wig", "nqc", "sigma-max", "sigma-50"] = "selector"
    """Who chooses: the selector; the rewards, which is the bound from above or below; or a prediction of retrieval's
    success."""
    pool: tuple[str, ...] = ()
    """The retrievers among which to choose; none named: all of the data."""
    train: str = ""
    """Candidates on which the predictions of each retriever are standardised; empty: they are compared as they are."""
    batch_tokens: int | None = None
    """Tokens in one batch, padding included, over all devices; not given: as many as keep them busy."""
    devices: Devices = Devices()
    compatibility: Compatibility = CORRECT
    force: bool = False
    """Start over where the output already exists."""


@dataclass(frozen=True)
class Prompts:
    """Write exactly what a generator would read, one `{id, prompt}` a line."""

    task: str
    """Task, e.g. LaMP-3."""
    merged: str
    """Questions, official or merged."""
    tokenizer: str
    """Directory or hub name of the model whose tokenizer counts the tokens."""
    output: str
    """JSON lines."""
    retriever: Retriever = "file"
    """Who orders the profile: `file` keeps the order it has (`lamp merge` ranked it), `none` leaves the profile out,
    `recency+dense` takes half from the file's (dense) order and half from the newest."""
    seed: int = 0
    """Seed of the `random` retriever."""
    prompting: Prompting = Prompting()
    compatibility: Compatibility = CORRECT
    force: bool = False
    """Start over where the output already exists."""


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


Ranker = Literal["bm25", "recency", "random", "dense", "rrf"]


@dataclass(frozen=True)
class Rank:
    """Rank every question's profile, best first: `{question id: [item id, ...]}`."""

    output: str
    """Ranking file; with `--all` the directory of all rankings and merged files."""
    task: str = ""
    """Task, e.g. LaMP-3."""
    questions: str = ""
    """Questions, official or merged."""
    all: str = ""
    """Instead of `--task` and `--questions`: a tree of `lamp download` or `lamp build`, of which every file is ranked
    and merged."""
    split: Split = "user"
    """Which part of the tree `--all` takes, and for which `best` is meant."""
    tasks: tuple[str, ...] = ()
    """Tasks that `--all` takes; none named: all that are there."""
    plan: bool = False
    """Only print what `--all` would do, and an estimate of the time."""
    ranker: Ranker | Literal["best"] | None = None
    """Who ranks; `rrf` fuses the rankings of others, `best` is the papers' choice for the task. Not given: `bm25`, with
    `--all` `best`."""
    encoder: str = "facebook/contriever"
    """Model directory or hub name of the encoder of `dense`."""
    embeddings_cache: str = ""
    """Directory where `dense` keeps its vectors for the next run; empty: nowhere."""
    max_length: int | None = None
    """Longest query and document that `dense` reads, in tokens, special tokens included; not given: as the encoder's
    files say, or was trained."""
    encoding: Encoding = Encoding()
    scores: str = ""
    """File to which the items' scores go, `{question id: [score, ...]}` in the ranking's order; `recency` and `random`
    have reciprocal ranks. `lamp selector-data` reads it."""
    batch_tokens: int | None = None
    """Tokens in one batch of `dense`, padding included, over all devices; not given: as many as keep them busy."""
    rankings: tuple[str, ...] = ()
    """Rankings that `rrf` fuses, two or more."""
    rrf_k: float = 60.0
    """Constant of `rrf`: an item's score is the sum of 1 / (k + rank) over the rankings."""
    bm25_variant: Literal["okapi", "lucene"] = "okapi"
    """Scoring of `bm25`: rank_bm25's Okapi, which the papers used, or Lucene's, whose idf is never negative."""
    use_date: bool = False
    """Whether documents end in ` date: ...`. An encoder that lamp trained knows how it was trained."""
    seed: int = 0
    """Seed of `random`."""
    work: Work = Work()
    devices: Devices = Devices(cpu_devices=0)
    compatibility: Compatibility = CORRECT
    force: bool = False
    """Start over where the output already exists."""


@dataclass(frozen=True)
class Merge:
    """Put profiles in the order of a ranking, and golds beside their questions."""

    questions: str
    """Questions."""
    output: str
    """Merged questions."""
    outputs: str = ""
    """Golds, official or a plain list; leave out for test questions."""
    ranking: str = ""
    """Ranking of `lamp rank`; leave out to keep the profiles' order."""
    work: Work = Work()
    compatibility: Compatibility = CORRECT
    force: bool = False
    """Start over where the output already exists."""


Part = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Download:
    """Fetch the benchmark's files, into the folders that they have at its site; what is whole is not fetched again."""

    output: str
    """Directory of the tree, for all tasks and both splits."""
    tasks: tuple[str, ...] = ()
    """Tasks; none named: LaMP-1 to LaMP-7 (of LaMP-6 there are ids only: see `lamp avocado`)."""
    split: Split = "user"
    """The user-based or the time-based separation."""
    parts: tuple[Part, ...] = ("train", "dev", "test")
    """Parts of a task's files."""
    mirrors: tuple[str, ...] = ()
    """Addresses that hold the same tree, asked before the benchmark's own, in this order."""
    connections: int = 4
    """Files that are fetched at the same time."""
    attempts: int = 5
    """Attempts in a row that bring nothing new, after which an address is given up."""
    timeout: float = 60.0
    """Seconds without a byte after which a connection is given up."""
    verify: bool = False
    """Fetch nothing: check every file of the tree against what was recorded when it came (size, SHA-256, JSON)."""


@dataclass(frozen=True)
class Avocado:
    """Write LaMP-6 from the licensed Avocado archives (LDC2015T03) and the benchmark's id files."""

    archives: str
    """Directory of the zips, `avocado-1.0.2/data/text`; they are read where they lie."""
    ids: str
    """Directory of the id files: `{train,dev,test}_questions.json`, there or in folders `train`, `dev`, `test`."""
    output: str
    """Directory of the LaMP-6 files."""
    replies: Literal["keep", "strip"] = "keep"
    """Quoted earlier mails in a body: as the benchmark has them, or without."""
    missing: Literal["stop", "drop"] = "stop"
    """Mails that no archive has: an error that lists them; or their items and questions are left out, and listed."""
    work: Work = Work()
    force: bool = False
    """Start over where the output already exists."""


@dataclass(frozen=True)
class Build:
    """Make a benchmark in LaMP's format of any users' histories."""

    histories: str
    """Rows of one user's one item each, in any order: `.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.json` (an object a line,
    or a list), each also as `.gz`, or `.parquet`."""
    task: str
    """Task whose form the questions have, e.g. LaMP-3."""
    output: str
    """Directory of the files, and of `report.json`: what was dropped and why."""
    map: tuple[str, ...] = ()
    """`FIELD=COLUMN`, or `FIELD=TEXT with {column}s`: where `user`, `date` and the task's fields are found; a field
    that is not named has a column of its own name. A user is a text or a whole number; 1 and "1" are one user."""
    join: tuple[str, ...] = ()
    """`FILE:COLUMN`: a table that fits into memory, whose columns are added to the rows with the same COLUMN."""
    split: Split = "time"
    """`time`: a user's last item is the test target, the one before it the dev target, earlier ones train targets, and
    profiles hold what came before. `user`: each user is in one part only."""
    targets: Literal["last", "random"] = "last"
    """`user`: the targets are a user's newest items, and profiles hold what came before; or they are drawn, and
    profiles hold all others (leave one out)."""
    targets_per_user: int = 1
    """`user`: targets of each user; `time`: train targets at most (beside one for dev and one for test)."""
    min_profile: int = 1
    """Fewest items of a profile; a target with fewer is dropped."""
    max_profile: int = 0
    """Most items of a profile, of which the newest are kept; 0 for no limit."""
    dev_share: float = 0.1
    """`user`: share of the users whose questions are the dev file."""
    test_share: float = 0.1
    """`user`: share of the users whose questions are the test file."""
    date_form: Literal["date", "seconds", "milliseconds", "microseconds", "nanoseconds"] = "date"
    """Time since 1970 in this unit; or `date`: 2007, 2007-05, 2007-05-31, ISO time stamps, `Mon Apr 06 22:19:45 PDT
    2009`, RFC 2822, `January 2, 2006`, and times since 1970 whose number of digits tells the unit (10, 13, 16, 19).
    UTC unless a zone is written: `Z`, `+hh`, `+hhmm`, `+hh:mm`, UTC, GMT, EST, EDT, CST, CDT, MST, MDT, PST or PDT;
    dates with another are unreadable."""
    date_format: str = ""
    """Dates in another format, in the codes of Python's `strptime`; UTC unless the format has a zone: `%z`, or `%Z` for
    the names above, whatever this machine's zone is."""
    encoding: str = "utf-8"
    """Encoding of csv, tsv and JSON, the tables to join included: utf-8, latin-1, cp1252, ..."""
    columns: tuple[str, ...] = ()
    """Names of the columns of a csv or tsv whose first line does not name them."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Rows of a user with the same texts, but for white space, at the same moment, however that is written (a day
    without a time is its midnight): the first is kept, or all. The report counts them."""
    round_scores: Literal["no", "up", "down", "nearest"] = "no"
    """Numbers between two labels of the task (3.5 stars): rows with them are dropped, or they are rounded."""
    seed: int = 0
    """Seed of the users' parts, of `random` targets and of LaMP-1's second reference."""
    work: Work = Work()
    force: bool = False
    """Start over where the output already exists."""


@dataclass(frozen=True)
class Tfds:
    """Write a tree of LaMP files as a TensorFlow dataset (array_record), each distinct profile once."""

    data: str
    """A tree of `lamp download` or `lamp build`."""
    task: str
    """Task, e.g. LaMP-3."""
    output: str
    """Directory of data sets, `data_dir` of `tfds.builder`."""
    split: Split = "user"
    """Which part of the tree."""
    work: Work = Work()
    compatibility: Compatibility = CORRECT
    force: bool = False
    """Start over where the output already exists."""


@dataclass(frozen=True)
class Check:
    """Validate LaMP files and print what is in them; exit status 1 for errors, 0 for warnings."""

    files: Positional[tuple[str, ...]]
    """Questions, merged questions, outputs, predictions or rankings."""
    task: str = ""
    """Task of all files; empty: each file's own, told by its inputs or its name."""
    output: str = ""
    """File to which everything that was found goes as JSON."""
    work: Work = Work()


@dataclass(frozen=True)
class Synth:
    """Write a benchmark whose right items are known: train and dev files, and `oracle.json`."""

    task: str
    """Task, e.g. LaMP-3."""
    output: str
    """Directory of the files."""
    questions: int = 2000
    """Train questions."""
    dev_questions: int = 0
    """Dev questions; 0 is a tenth as many as train questions, at least 200."""
    profile_size: int = 20
    """Mean number of profile items."""
    profile_sizes: tuple[int, int] | None = None
    """In place of the mean, the smallest and the largest number, evenly spread by their logarithms: as many users have
    2 to 4 items as have 50 to 100."""
    words: int = 0
    """Words of a text; 0 for the short texts of the demo, 7 to 10 words."""
    seed: int = 0
    """Seed."""
    force: bool = False
    """Start over where the output already exists."""


@dataclass(frozen=True)
class Demo:
    """Make a small benchmark, train a small T5 on it and compare retrievers: the main job in five minutes."""

    output: str = "demo"
    """Directory of everything that is made."""
    seed: int = 0
    """Seed of the benchmark and of the training."""
    size: Literal["full", "smoke"] = "full"
    """`smoke` is seconds long and learns nothing: it shows that everything runs."""
    stages: tuple[Literal["retriever", "selector", "adapters"], ...] = ()
    """What to show beside: `retriever` trains dense retrievers on the model's feedback (ROPG-KD, ROPG-RL), `selector`
    models that choose among retrievers (RSPG-Pre, RSPG-Post), `adapters` a LoRA adapter for every user."""
    force: bool = False
    """Start over where the output already exists."""


@dataclass(frozen=True)
class Compile:
    """Compile a step of an experiment for TPUs that need not be there: does it fit, what does it cost.

    Options of the experiment follow behind `--`: lamp compile CONFIG --topology v5e:4x4 -- --sharding fsdp
    """

    config: Positional[str]
    """A config page."""
    topology: str
    """Chips of a slice and their arrangement: v5e:1x1 (Colab), v5e:4x4, v6e:2x4, v5p:2x2x2, tpu7x:2x2x1, v4:2x2x1,
    v3:2x2, v2:2x2. A chip of v2, v3, v4 and tpu7x holds two devices, of the others one."""
    slices: int = 1
    """Slices of that topology. The data axis spans them; traffic between them, over the data-centre network, is counted
    apart."""
    megacore: bool = False
    """v4: one device a chip, of both its cores, as jax opens a real v4; libtpu without a TPU describes two."""
    stage: Literal["", "train", "generate", "feedback", "retriever", "selector", "adapters"] = ""
    """Whose step; empty: that of the page. A page of `lamp train` also says how to generate and to ask for feedback."""
    candidates: int = 6
    """`selector`: retrievers of the pool, which a page does not say."""
    json: bool = False
    """Print one JSON object and nothing else."""
    options: Suppress[tuple[str, ...]] = ()
    """What stands behind `--`."""


@dataclass(frozen=True)
class Evaluate:
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
    force: bool = False
    """Start over where the output already exists."""
