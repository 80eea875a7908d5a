"""Training and inference steps under the TPU compiler: small models compile to the recorded programs.

`compiled.json` in this folder has the collectives and the peak memory of each stage; `LAMP_WRITE_GOLDENS=1` writes it
again, to be reviewed before it is kept.
"""

import json
import os
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lamp_jax.compiler import report
from lamp_jax.compiler.chips import open_topology
from lamp_jax.models.bert import BertConfig
from lamp_jax.models.longformer import LongformerConfig
from lamp_jax.models.t5_config import T5Config
from lamp_jax.sharding import make_mesh

pytestmark = [pytest.mark.slow, pytest.mark.tpu_compile]

GOLDENS = Path(__file__).parent / "compiled.json"
T5 = T5Config(
    vocab_size=1024,
    d_model=512,
    d_ff=512,
    num_layers=2,
    num_decoder_layers=2,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
)
SMALL = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
MODELS = {
    "t5": T5,
    "bert": BertConfig(vocab_size=1024, **SMALL),
    "longformer": LongformerConfig(vocab_size=1024, attention_window=64, **SMALL),
}
PAGES = {
    "train": """Train("LaMP-3", "t", "v", "o", "{t5}", learning=Learning(batch_size=16), devices=SPLIT,
                      prompting=Prompting(max_length=128), answering=Answering(generation_max_length=17))""",
    "generate": """Generate("LaMP-4", "q", "{t5}", "o", devices=TENSOR, prompting=Prompting(max_length=128),
                            answering=Answering(generation_max_length=17))""",
    "feedback": """FeedbackItems("LaMP-4", "m", "{t5}", "o", reward="likelihood", devices=WHOLE, max_length=128,
                                 answering=Answering(generation_max_length=17))""",
    "retriever": """TrainRetriever("LaMP-3", "q", ("f",), "o", encoder="{bert}", profile_size=4, max_length=64,
                                   learning=Learning(batch_size=16, accumulation=2), devices=WHOLE)""",
    "selector": """TrainSelector("t", "v", "o", model="{longformer}", max_length=192, devices=FSDP,
                                 learning=Learning(batch_size=16))""",
    "adapters": """TrainAdapters("LaMP-3", "q", "o", "{t5}", users_per_step=16, tokens_per_device=576, max_length=128,
                                 target_length=16, storage="int8", devices=SPLIT)""",
}
HEAD = """from lamp_jax.options import *
WHOLE, TENSOR = Devices(dtype="bfloat16"), Devices(dtype="bfloat16", sharding="tensor", model_parallel=4)
FSDP = Devices(dtype="bfloat16", sharding="fsdp", remat="full")
SPLIT = Devices(dtype="bfloat16", sharding="fsdp+tensor", model_parallel=2, remat="full")
experiment = """


@pytest.fixture(scope="module")
def compile_stage(tmp_path_factory):
    """Function from a stage to the JSON that the command prints; each stage is compiled once."""
    directory = tmp_path_factory.mktemp("compile")
    for name, config in MODELS.items():
        (directory / name).mkdir()
        (directory / name / "config.json").write_text(json.dumps(config.to_hf()))

    @cache
    def compiled(stage: str, *where: str) -> dict:
        page = directory / f"{stage}.py"
        page.write_text(HEAD + PAGES[stage].format(**{name: directory / name for name in MODELS}))
        where = where or ("--topology", "v5e:2x4")
        words = ["compile", str(page), *where, "--candidates", "2", "--json"]
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        done = subprocess.run(
            [sys.executable, "-m", "lamp_jax.cli", *words], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)  # exactly one JSON object

    return compiled


@pytest.mark.parametrize("stage", PAGES)
def test_collectives_and_peak_memory_do_not_exceed_the_golden_file(stage, compile_stage):
    found = compile_stage(stage)
    seen = {"collectives": {kind: one["count"] for kind, one in found["collectives"].items()}}
    seen |= {"peak": found["memory"]["peak"], "libtpu": version("libtpu")}
    goldens = json.loads(GOLDENS.read_text()) if GOLDENS.exists() else {}
    if os.environ.get("LAMP_WRITE_GOLDENS"):
        GOLDENS.write_text(json.dumps(goldens | {stage: seen}, indent=2, sort_keys=True) + "\n")
        return
    golden = goldens[stage]
    assert set(seen["collectives"]) <= set(golden["collectives"])
    if seen["libtpu"] == golden["libtpu"]:
        assert all(count <= golden["collectives"][kind] for kind, count in seen["collectives"].items())
        assert seen["peak"] <= 1.1 * golden["peak"]


def test_a_report_has_the_roofline_bound_and_the_memory(compile_stage):
    found = compile_stage("train")
    assert found["fits"]
    assert found["mesh"] == {"data": 4, "model": 2}
    assert (found["topology"], found["slices"], found["chips"], found["devices"]) == ("v5e:2x4", 1, 8, 8)
    assert found["between_slices"] == {}
    assert found["roofline"]["bound"] in {"compute", "hbm", "interconnect"}
    assert 0 < found["mfu"] < 1
    assert 0 < found["memory"]["arguments"] < found["memory"]["peak"] < found["memory"]["available"]


def test_weights_are_sharded_and_not_replicated(compile_stage):
    """Parameters and Adam's moments, 12 bytes each, on 8 chips (norms and positions are small and replicated)."""
    encoder, decoder = 2 * (4 + 3) * 512 * 512, 2 * (8 + 3) * 512 * 512
    complete = 12 * (encoder + decoder + 2 * 1024 * 512)
    assert compile_stage("train")["memory"]["arguments"] < 1.1 * complete / 8


def test_users_are_sharded_over_the_data_axis_and_a_frozen_base_takes_one_byte_per_weight(compile_stage):
    """Adapters, their gradients and two moments, float32, for a quarter of 16 users per chip."""
    projections = 2 * 3 + 2 * 6  # q, k, v of encoder and decoder, and of the decoder's cross-attention
    users = 16 / 4 * 4 * 4 * projections * 8 * (512 + 512)
    encoder, decoder = 2 * (4 + 3) * 512 * 512, 2 * (8 + 3) * 512 * 512
    base = (encoder + decoder + 2 * 2 * 1024 * 512) / 8
    assert compile_stage("adapters")["memory"]["arguments"] < 1.1 * (users + base)


def test_steps_compile_for_a_v4_with_two_devices_per_chip_and_two_slices(compile_stage):
    """Regression test: jax.make_mesh raised AssertionError for one slice and ValueError for two."""
    found = compile_stage("feedback", "--topology", "v4:2x2x1", "--slices", "2")
    assert (found["topology"], found["slices"], found["chips"], found["devices"]) == ("v4:2x2x1", 2, 8, 16)
    assert found["mesh"] == {"data": 16, "model": 1}
    assert found["fits"]


def test_a_step_that_does_not_fit_is_reported():
    topology = open_topology("v5e:2x4")
    mesh = make_mesh(8, 1, devices=topology.devices)
    with jax.set_mesh(mesh):
        large = jax.ShapeDtypeStruct((5 * 2**30,), jnp.float32, sharding=NamedSharding(mesh, P()))
        function = jax.jit(lambda x: (jnp.sin(x), jnp.cos(x)))
        found = report.measure("train", topology, mesh, lambda: function.lower(large), None)
    assert not found.memory.fits
    assert found.memory.peak >= 3 * 20 * 2**30
    assert "does not fit" in report.describe(found)
