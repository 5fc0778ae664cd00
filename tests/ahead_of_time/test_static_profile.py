"""A program's time is summed from cycles and bytes, whichever is more."""

import pytest

from griffin_jax.ahead_of_time import static_profile
from griffin_jax.ahead_of_time.hlo import Module

TEXT = """\
HloModule jit_f

ENTRY %main (x: bf16[16,512]) -> bf16[16,256] {
  %x = bf16[16,512]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %code = f32[12,16]{1,0} constant({...})
  %packed = u8[12,256,256]{2,1,0} constant({...})
  %absmax = f32[12,8,256]{2,1,0} constant({...})
  %packed_matmul.7 = bf16[16,256]{1,0:T(8,128)(2,1)S(1)} custom-call(%code, %x, %packed, %absmax), \
custom_call_target="tpu_custom_call", operand_layout_constraints={f32[12,16]{1,0}, \
bf16[16,512]{1,0}, u8[12,256,256]{2,1,0}, f32[12,8,256]{2,1,0}}, frontend_attributes={a={}}
  %large.1 = f32[1024,1024]{1,0} add(%absmax, %absmax)
  %small.1 = f32[8]{0:T(128)S(1)} negate(%code)
  %small.2 = f32[8]{0:T(128)S(1)} negate(%code)
  ROOT %out = bf16[16,256]{1,0} copy(%packed_matmul.7)
}
"""


def test_the_larger_of_cycles_and_bytes_counts_and_like_instructions_take_like_cycles():
    module = Module(TEXT)
    cycles = {"small.1": 3000}
    forms = static_profile._forms(module, cycles) | {("packed_matmul", 16, 512, 256): 9000}
    found = static_profile.summed(module, cycles, forms)
    clock = 1.503e9
    code, packed, absmax, out = 12 * 16 * 4, 256 * 256, 8 * 256 * 4, 16 * 256 * 2
    large = (2 * 12 * absmax + 1024 * 1024 * 4) / 819e9
    assert found.kernel_seconds == pytest.approx(9000 / clock, rel=1e-3)
    expected = 9000 / clock + large + 2 * 3000 / clock + out / 819e9
    assert found.seconds == pytest.approx(expected, rel=1e-3)
    assert found.covered == pytest.approx(15000 / clock / expected, rel=1e-3)
    memory = (code + packed + absmax + 2 * code + out) / 819e9 + large
    assert found.memory_seconds == pytest.approx(memory, rel=1e-2)


def test_a_product_is_known_by_its_kernel_rows_inputs_and_outputs():
    (product,) = (x for x, _, _ in Module(TEXT).executed() if static_profile._is_product(x))
    assert static_profile._product(product) == ("packed_matmul", 16, 512, 256)
