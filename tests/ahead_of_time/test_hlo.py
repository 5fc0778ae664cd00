"""What a compiled program does is read from its text: how often, and with how many bytes."""

import pytest

from griffin_jax.ahead_of_time.hlo import Module, array_bytes

TEXT = """\
HloModule jit_f, is_scheduled=true

%slice_one (p.0: bf16[12,8,128], p.1: s32[]) -> bf16[8,128] {
  %p.0 = bf16[12,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = s32[] parameter(1)
  %renamed = bf16[12,8,128]{2,1,0} bitcast(%p.0)
  ROOT %ds = bf16[1,8,128]{2,1,0} dynamic-slice(%renamed, %p.1), dynamic_slice_sizes={1,8,128}
}

%outer (q.0: bf16[12,8,128], q.1: s32[], q.2: f32[128]) -> f32[128] {
  %q.0 = bf16[12,8,128]{2,1,0} parameter(0)
  %q.1 = s32[] parameter(1)
  %q.2 = f32[128]{0} parameter(2)
  %inner = bf16[8,128]{1,0} fusion(%q.0, %q.1), kind=kLoop, calls=%slice_one
  ROOT %sum = f32[128]{0} add(%q.2, %q.2)
}

%write (w.0: f32[12,256], w.1: f32[1,256], w.2: s32[]) -> f32[12,256] {
  %w.0 = f32[12,256]{1,0} parameter(0)
  %w.1 = f32[1,256]{1,0} parameter(1)
  %w.2 = s32[] parameter(2)
  ROOT %dus = f32[12,256]{1,0} dynamic-update-slice(%w.0, %w.1, %w.2, %w.2)
}

%all-reduce-scatter.1 (s.0: f32[4,256]) -> f32[1,256] {
  %s.0 = f32[4,256]{1,0} parameter(0)
  %all = f32[4,256]{1,0} all-reduce(%s.0), channel_id=2, replica_groups={{0,1,2,3}}, to_apply=%slice_one
  %at = s32[] constant(0)
  ROOT %part = f32[1,256]{1,0} dynamic-slice(%all, %at, %at), dynamic_slice_sizes={1,256}
}

%begin (g.0: f32[64]) -> (f32[64], f32[256]) {
  %g.0 = f32[64]{0} parameter(0)
  %whole.0 = f32[256]{0} all-gather(%g.0), channel_id=3, dimensions={0}
  ROOT %both = (f32[64]{0}, f32[256]{0}) custom-call(%whole.0), custom_call_target="begin"
}

%finish (h.0: (f32[64], f32[256])) -> f32[256] {
  %h.0 = (f32[64]{0}, f32[256]{0}) parameter(0)
  %h.1 = f32[64]{0} get-tuple-element(%h.0), index=0
  %whole.1 = f32[256]{0} all-gather(%h.1), channel_id=3, dimensions={0}
  ROOT %gathered = f32[256]{0} custom-call(%whole.1), custom_call_target="finish"
}

%condition (c.0: (s32[], f32[12,256])) -> pred[] {
  %c.0 = (s32[], f32[12,256]{1,0}) parameter(0)
  %index = s32[] get-tuple-element(%c.0), index=0
  %limit = s32[]{:T(128)} constant(12)
  ROOT %less = pred[] compare(%index, %limit), direction=LT
}

%body (b.0: (s32[], f32[12,256])) -> (s32[], f32[12,256]) {
  %b.0 = (s32[], f32[12,256]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%b.0), index=0
  %carry = f32[12,256]{1,0} get-tuple-element(%b.0), index=1
  %row = f32[1,256]{1,0} get-tuple-element(%b.0), index=1
  %stack = bf16[12,8,128]{2,1,0:T(8,128)(2,1)} constant({...})
  %small = f32[128]{0:T(128)S(1)} constant({...})
  %read = f32[128]{0:T(128)S(1)} fusion(%stack, %i, %small), kind=kLoop, calls=%outer
  %written = f32[12,256]{1,0} fusion(%carry, %row, %i), kind=kLoop, calls=%write
  %kernel = bf16[16,256]{1,0:T(8,128)S(1)} custom-call(%i, %stack), custom_call_target="tpu_custom_call"
  %reduced = f32[128]{0} all-reduce(%small), channel_id=1, replica_groups={{0,1}}, to_apply=%slice_one
  ROOT %out = (s32[], f32[12,256]{1,0}) tuple(%i, %written)
}

ENTRY %main (x: f32[12,256]) -> f32[12,256] {
  %x = f32[12,256]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %init = (s32[], f32[12,256]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[12,256]{1,0}) while(%init), condition=%condition, body=%body
  %begun = (f32[64]{0}, f32[128]{0}) all-gather-start(%x), dimensions={0}
  %ended = f32[128]{0} all-gather-done(%begun)
  %part.1 = f32[1,256]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %async-collective-start.1 = (f32[64]{0}, f32[256]{0}) fusion(%x), kind=kCustom, calls=%begin
  %async-collective-done.1 = f32[256]{0} fusion(%async-collective-start.1), kind=kCustom, calls=%finish
  ROOT %result = f32[12,256]{1,0} get-tuple-element(%loop), index=1
}
"""


@pytest.fixture(scope="module")
def module():
    return Module(TEXT)


def traffic(module):
    return {
        x.name: (times, module.memory_traffic(x, scope)) for x, scope, times in module.executed()
    }


def test_a_loop_runs_its_body_as_often_as_its_condition_says(module):
    assert {name: times for name, (times, _) in traffic(module).items()}["kernel"] == 12


def test_of_a_stack_the_slice_counts_and_of_what_is_written_the_update(module):
    found = traffic(module)
    assert found["read"] == (12, 8 * 128 * 2 + 4)  # one layer and the index
    assert found["written"] == (12, 2 * 256 * 4 + 4)
    assert found["kernel"] == (12, 8 * 128 * 2 + 4)


def test_arrays_in_other_memories_and_names_cost_no_traffic(module):
    assert array_bytes("f32[128]{0:T(128)S(1)}") == 0
    assert array_bytes("f32[128]{0:T(128)S(1)}", everywhere=True) == 512
    assert array_bytes("(u4[3,4]{1,0}, pred[8]{0})") == 6 + 8
    assert traffic(module)["carry"] == (12, 0)


def test_collectives_are_counted_with_the_bytes_of_their_results(module):
    found = module.collectives()
    assert {kind: (c.count, c.num_bytes) for kind, c in found.items()} == {
        "all-reduce": (12, 12 * 512),
        "all-gather": (2, 512 + 1024),
        "reduce-scatter": (1, 1024),
    }
