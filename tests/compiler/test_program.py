"""Statistics of compiled programs: loops, products, collectives, bytes."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lamp_jax.compiler import costs
from lamp_jax.compiler.program import Program
from lamp_jax.compiler.report import count_products
from lamp_jax.compiler.traffic import traffic
from lamp_jax.sharding import make_mesh


def compiled(function, *arguments) -> Program:
    return Program(jax.jit(function).lower(*arguments).compile().as_text())


def test_products_in_loops_are_counted_once_per_iteration():
    def function(x, weights):
        return jax.lax.scan(lambda x, weight: (x @ weight, None), x, weights)[0]

    arguments = jnp.ones((4, 16)), jnp.ones((7, 16, 16))
    assert costs.products(compiled(function, *arguments)) == 7 * 2 * 4 * 16 * 16
    assert count_products(function, *arguments) == 7 * 2 * 4 * 16 * 16


def test_products_of_a_gradient_are_three_times_those_of_the_loss():
    def loss(x, weights):
        return jnp.sum(jax.lax.scan(lambda x, weight: (jnp.sin(x @ weight), None), x, weights)[0])

    arguments = jnp.ones((4, 16)), jnp.ones((7, 16, 16))
    assert costs.products(compiled(jax.grad(loss, argnums=(0, 1)), *arguments)) == 3 * count_products(loss, *arguments)


def test_products_are_those_of_one_device():
    mesh = make_mesh(8, 1)
    with jax.set_mesh(mesh):
        rows = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=NamedSharding(mesh, P("data")))
        weight = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=NamedSharding(mesh, P()))
        assert costs.products(compiled(jnp.matmul, rows, weight)) == 2 * 64 * 16 * 32 // 8


@settings(max_examples=60)
@given(
    size=st.integers(1, 9),
    window=st.integers(1, 5),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    reach=st.integers(1, 2),
    low=st.integers(0, 3),
    high=st.integers(0, 3),
)
def test_convolutions_count_only_products_without_padding(size, window, stride, dilation, reach, low, high):
    """The oracle is XLA's own count for a program without loops."""
    assume((size - 1) * dilation + 1 + low + high >= (window - 1) * reach + 1)

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,), [(low, high)], lhs_dilation=(dilation,), rhs_dilation=(reach,)
        )

    lowered = jax.jit(convolve).lower(jnp.ones((2, 3, size)), jnp.ones((5, 3, window)))
    program = Program(lowered.compiler_ir("hlo").as_hlo_module().to_string())
    assert costs.products(program) == lowered.cost_analysis().get("flops", 0)


@pytest.mark.parametrize(
    ("kind", "function", "size", "sent"),
    [
        ("all-reduce", lambda x: jax.lax.psum(x, "data"), 4 * 16, 2 * 4 * 16 * 7 // 8),
        ("all-gather", lambda x: jax.lax.all_gather(x, "data"), 8 * 4 * 16, 7 * 4 * 16),
        ("all-to-all", lambda x: jax.lax.all_to_all(x, "data", 0, 0, tiled=True), 4 * 16, 4 * 16 * 7 // 8 // 2),
        ("collective-permute", lambda x: jax.lax.ppermute(x, "data", [(i, i ^ 1) for i in range(8)]), 4 * 16, 4 * 16),
    ],
)
def test_collectives_are_counted_with_their_bytes_and_executions(kind, function, size, sent):
    def step(x, _):
        return x + jnp.sum(function(x * 2)), None

    mesh = make_mesh(8, 1)
    with jax.set_mesh(mesh):
        looped = jax.shard_map(
            lambda x: jax.lax.scan(step, x, None, length=5)[0], in_specs=P("data"), out_specs=P("data"), check_vma=False
        )
        x = jax.ShapeDtypeStruct((128,), jnp.float32, sharding=NamedSharding(mesh, P("data")))
        found = costs.collectives(compiled(looped, x))
    assert found[kind] == costs.Collective(5, 5 * size, 5 * sent)
    assert list(found) == [kind]


GROUPS = {
    "replica_groups={{0,1},{2,3}}, x=1": 2,
    "replica_groups=[4,2]<=[8], x=1": 2,
    "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, x=1": 4,
    "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}, x=1": 8,
    "source_target_pairs={{0,1},{1,2},{2,0}}, x=1": 3,
}


@pytest.mark.parametrize(("attributes", "members"), GROUPS.items())
def test_replica_groups_are_read_in_every_notation(attributes, members):
    text = (
        f"ENTRY %main (p: f32[4]) -> f32[4] {{\n  ROOT %r = f32[4]{{0}} all-reduce(%p), channel_id=1, {attributes}\n}}"
    )
    (only,) = Program(text).computations["main"].instructions
    assert costs.group_size(only) == members


BOTH = "{1,2}x{0:3}"
PAIRS = "{{100003->200000},{200003->300000},{300003->100000}}"
LISTED = "{{100000,100003,200000,200003},{100001,100002,200001,200002}}"


@pytest.mark.parametrize(
    ("transfer", "target", "kind", "complete", "sent"),
    [
        ("ALL_REDUCE", BOTH, "all-reduce", 64, 64),
        ("ALL_REDUCE", "{1,2,3,4}x{0:3}", "all-reduce", 64, 96),
        ("ALL_REDUCE", "{1:4}x{0:3}", "all-reduce", 64, 96),
        ("ALL_GATHER", BOTH, "all-gather", 128, 64),
        ("ALL_GATHER", "{1,2,3,4}x{0:3}", "all-gather", 256, 192),
        ("REDUCE_SCATTER", BOTH, "reduce-scatter", 64, 32),
        ("ALL_TO_ALL", LISTED, "all-to-all", 64, 32),
        ("ONE_TO_ONE", PAIRS, "collective-permute", 64, 64),
    ],
)
def test_traffic_between_slices_is_counted_from_host_transfers(transfer, target, kind, complete, sent):
    """As libtpu 0.0.42.1 prints it: an array of 64 bytes, in a loop of five iterations."""
    given = f'_xla_megascale_target="{target}"' if "x" in target else f"_xla_megascale_target={target}"
    attributes = f'is_host_transfer=true, frontend_attributes={{{given},_xla_megascale_transfer_type="{transfer}"}}'
    text = f"""HloModule m

%body (p: f32[16]) -> f32[16] {{
  %p = f32[16]{{0:T(128)}} parameter(0)
  %token = token[] after-all()
  %send = (f32[16]{{0:T(128)}}, u32[], token[]) send(%p, %token), channel_id=2, {attributes}
  %recv = (f32[16]{{0:T(128)}}, u32[], token[]) recv(%token), channel_id=1, {attributes}
  %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %recv-done = (f32[16]{{0:T(128)}}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  ROOT %received = f32[16]{{0:T(128)}} get-tuple-element(%recv-done), index=0
}}

%condition (p: f32[16]) -> pred[] {{
  %p = f32[16]{{0:T(128)}} parameter(0)
  %turns = s32[] constant(5)
  ROOT %less = pred[] compare(%turns, %turns), direction=LT
}}

ENTRY %main (x: f32[16]) -> f32[16] {{
  %x = f32[16]{{0:T(128)}} parameter(0)
  ROOT %loop = f32[16]{{0:T(128)}} while(%x), condition=%condition, body=%body
}}
"""
    program = Program(text)
    assert costs.between_slices(program) == {kind: costs.Collective(5, 5 * complete, 5 * sent)}
    assert costs.collectives(program) == {}
    tile = 128 * 4
    assert traffic(program) == 5 * (tile + tile)  # read to be sent, written when received


HLO = """HloModule m

%fused (a: f32[8,4], b: f32[1,4], i: s32[]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = f32[1,4]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %update = f32[8,4]{1,0} dynamic-update-slice(%a, %b, %i, %i)
}

ENTRY %main (x: f32[8,4], y: f32[1,4], i: s32[]) -> f32[8,4] {
  %x = f32[8,4]{1,0:T(8,128)} parameter(0)
  %y = f32[1,4]{1,0:T(8,128)} parameter(1)
  %i = s32[]{:T(128)S(6)} parameter(2)
  %fast = f32[1,4]{1,0:T(8,128)S(1)} negate(%y)
  ROOT %fusion = f32[8,4]{1,0:T(8,128)} fusion(%x, %fast, %i), kind=kLoop, calls=%fused
}
"""


TILE_ROW, TILE = 128 * 4, 8 * 128 * 4
"""Bytes of a tile T(8,128) of f32, to which the arrays of these programs are padded, and of one of its rows."""


def test_memory_traffic_counts_slices_and_excludes_fast_memory():
    read_y, write_slice = TILE, TILE_ROW
    assert traffic(Program(HLO)) == read_y + write_slice


COPIED = """HloModule m

%copied (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  ROOT %same = f32[8,4]{1,0} copy(%a)
}

%fused (b: f32[8,4], c: f32[1,4], i: s32[]) -> f32[8,4] {
  %b = f32[8,4]{1,0} parameter(0)
  %c = f32[1,4]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %inner = f32[8,4]{1,0} fusion(%b), kind=kLoop, calls=%copied
  %old = f32[1,4]{1,0} dynamic-slice(%inner, %i, %i), dynamic_slice_sizes={1,4}
  %sum = f32[1,4]{1,0} add(%c, %old)
  ROOT %update = f32[8,4]{1,0} dynamic-update-slice(%inner, %sum, %i, %i)
}

ENTRY %main (x: f32[8,4], y: f32[1,4], i: s32[]) -> f32[8,4] {
  %x = f32[8,4]{1,0:T(8,128)} parameter(0)
  %y = f32[1,4]{1,0:T(8,128)} parameter(1)
  %i = s32[]{:T(128)S(6)} parameter(2)
  ROOT %fusion = f32[8,4]{1,0:T(8,128)} fusion(%x, %y, %i), kind=kLoop, calls=%fused
}
"""


def test_an_array_copied_within_a_fusion_counts_as_read_where_it_is_used():
    """The compiler for Ironwood copies caches in this way: they are updated in place, one row at a time."""
    read_row, read_y, write_row = TILE_ROW, TILE, TILE_ROW
    assert traffic(Program(COPIED)) == read_row + read_y + write_row
    complete = COPIED.replace("copy(%a)", "negate(%a)")
    assert traffic(Program(complete)) == TILE + read_y + write_row


@pytest.mark.parametrize(
    ("array", "stored"),
    [
        ("f32[8,4]{1,0}", 8 * 4 * 4),  # without tiles
        ("f32[8,4]{1,0:T(8,128)}", 8 * 128 * 4),
        ("f32[4,200]{0,1:T(8,128)}", 200 * 128 * 4),  # the first axis varies fastest
        ("bf16[12,8,508,64]{3,1,2,0:T(8,128)(2,1)}", 12 * 508 * 8 * 128 * 2),
        ("f32[768]{0:T(1024)S(1)}", 1024 * 4),
        ("pred[3]{0:T(4,128)(4,1)}", 4 * 128),  # an array with fewer axes than its tile
        ("s32[]{:T(128)}", 128 * 4),
    ],
)
def test_arrays_are_stored_in_complete_tiles(array, stored):
    text = f"ENTRY %main (p: f32[]) -> f32[] {{\n  ROOT %r = {array} parameter(0)\n}}"
    (only,) = Program(text).computations["main"].instructions
    assert only.arrays[0].stored == stored
    assert only.arrays[0].in_hbm == ("S(1)" not in array)


@pytest.mark.parametrize(
    ("line", "bytes_moved"),
    [
        ("(f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)", TILE),
        ("(f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%fast)", TILE),
        (
            "((f32[8,128]{1,0:T(8,128)}), f32[1,128]{1,0:T(1,128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:1]}",
            512,
        ),
        ('f32[8,128]{1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"', 0),
        ('f32[8,128]{1,0:T(8,128)} custom-call(%x), custom_call_target="mine"', 2 * TILE),
        ("(f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) all-reduce-start(%x, %x), channel_id=1", 4 * TILE),
    ],
)
def test_copies_to_and_from_fast_memory_move_an_array_once(line, bytes_moved):
    text = f"""ENTRY %main (x: f32[8,128]) -> f32[8,128] {{
  %x = f32[8,128]{{1,0:T(8,128)}} parameter(0)
  %fast = f32[8,128]{{1,0:T(8,128)S(1)}} get-tuple-element(%x), index=0
  ROOT %one = {line}
}}
"""
    assert traffic(Program(text)) == bytes_moved


COUNTED = """%body (p: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %p = (s32[], f32[4,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %step = s32[] constant(STEP)
  %next = s32[] add(%i, %step)
  %x = f32[4,4]{1,0} get-tuple-element(%p), index=1
  %y = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %both = (s32[], f32[4,4]{1,0}) tuple(%next, %y)
}

%condition (p: (s32[], f32[4,4])) -> pred[] {
  %p = (s32[], f32[4,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %bound = s32[] constant(7)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (x: f32[4,4]) -> (s32[], f32[4,4]) {
  %x = f32[4,4]{1,0} parameter(0)
  %start = s32[] constant(START)
  %copied = s32[] copy(%start)
  %both = (s32[], f32[4,4]{1,0}) tuple(%copied, %x)
  ROOT %loop = (s32[], f32[4,4]{1,0}) while(%both), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize(("start", "step", "turns"), [(0, 1, 7), (0, 2, 4), (1, 2, 3), (3, 4, 1)])
def test_a_loop_runs_as_often_as_its_counter_says(start, step, turns):
    """Loops that overlap products with communication do the work of two devices in each turn."""
    program = Program(COUNTED.replace("START", str(start)).replace("STEP", str(step)))
    assert costs.products(program) == turns * 2 * 4 * 4 * 4


@pytest.mark.parametrize(("fast", "share"), [("", 1), ("S(1)", 3 / 4)])
def test_a_kernel_reads_the_share_of_its_estimate_that_is_in_main_memory(fast, share):
    """Three arrays of a tile in main memory, the fourth perhaps in fast memory; each is read 5 / 4 times."""
    tile = "f32[8,128]{1,0:T(8,128)}"
    estimate = f'"cost_estimate":{{"flops":"7","transcendentals":"1","bytes_accessed":"{5 * TILE}"}}'
    text = f"""ENTRY %main (x: f32[8,128]) -> f32[8,128] {{
  %x = {tile} parameter(0)
  %y = {tile.replace(")}", ")" + fast + "}")} get-tuple-element(%x), index=0
  ROOT %one = {tile} custom-call(%x, %x, %y), custom_call_target="tpu_custom_call", backend_config={{{estimate}}}
}}
"""
    assert traffic(Program(text)) == share * 5 * TILE
    assert costs.products(Program(text)) == 7
