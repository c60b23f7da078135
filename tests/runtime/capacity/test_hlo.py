"""Reading compiled programs: a small one, written and counted by hand."""

from distaff.runtime.capacity.hlo import collectives_of, kernels_of, traffic_of

PROGRAM = """\
HloModule jit_step

%scattered (pool: bf16[1024,2,128], rows: bf16[4,2,128]) -> bf16[1024,2,128] {
  %pool = bf16[1024,2,128]{2,1,0} parameter(0)
  %rows = bf16[4,2,128]{2,1,0} parameter(1)
  ROOT %s = bf16[1024,2,128]{2,1,0} scatter(%pool, %rows), to_apply=%last
}

%looked_up (table: bf16[5000,128], ids: s32[4]) -> bf16[4,128] {
  %table = bf16[5000,128]{1,0} parameter(0)
  ROOT %g = bf16[4,128]{1,0:T(8,128)S(1)} gather(%table, %ids)
}

%cheap (x: f32[8,64]) -> f32[8,64] {
  ROOT %x = f32[8,64]{1,0} parameter(0)
}

%dear (y: f32[8,64]) -> f32[8,64] {
  %y = f32[8,64]{1,0} parameter(0)
  %sent = f32[16,64]{1,0} all-gather(%y)
  ROOT %n = f32[8,64]{1,0} negate(%y)
}

ENTRY %main (w: bf16[512,256], p: bf16[1024,2,128], t: bf16[5000,128]) -> f32[8,64] {
  %w = bf16[512,256]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="leaves[3]"}
  %p = bf16[1024,2,128]{2,1,0} parameter(1)
  %t = bf16[5000,128]{1,0} parameter(2)
  %b = pred[]{:T(512)} parameter(3)
  %new = bf16[4,2,128]{2,1,0:S(1)} parameter(4)
  %ids = s32[4]{0:S(1)} parameter(5)
  %near = ((bf16[512,256]{1,0}), bf16[128,256]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%w), slice={[0:128], [0:256]}
  %here = bf16[128,256]{1,0:T(8,128)(2,1)S(1)} slice-done(%near)
  %moved = (bf16[512,256]{1,0:S(1)}, bf16[512,256]{1,0}, u32[]{:S(2)}) copy-start(%w)
  %logits = f32[8,64]{1,0} all-gather(%here), metadata={op_name="head/all_gather"}
  %nearer = (f32[8,64]{1,0:S(1)}, f32[8,64]{1,0}, u32[]{:S(2)}) copy-start(%logits)
  %gathered = bf16[4,128]{1,0:T(8,128)S(1)} fusion(%t, %ids), kind=kCustom, calls=%looked_up
  %pool2 = bf16[1024,2,128]{2,1,0} fusion(%p, %new), kind=kCustom, calls=%scattered, metadata={op_name="attention/scatter"}
  %attend.1 = bf16[4,4,128]{2,1,0:S(1)} custom-call(%ids, %pool2), custom_call_target="tpu_custom_call", metadata={op_name="attention/attend/pallas_call"}
  %sum.1 = bf16[4,256]{1,0:S(1)} all-reduce(%gathered), to_apply=%add
  %sum.2 = bf16[4,256]{1,0:S(1)} all-reduce(%gathered), to_apply=%add
  %wide = (f32[4,64]{1,0}, f32[4,512]{1,0}) all-gather-start(%gathered), dimensions={1}
  %product = f32[8,64]{1,0:S(1)} fusion(%here, %w), kind=kOutput, calls=%none, metadata={op_name="head/dot_general"}
  ROOT %out = f32[8,64]{1,0} conditional(%b, %product, %product), branch_computations={%cheap, %dear}, metadata={op_name="sample/cond"}
}
"""  # noqa: E501 - one instruction a line, as XLA prints them


def test_only_accessed_bytes_of_main_memory_count() -> None:
    """A slice is fetched once, only some rows of a table are read, only new rows of a pool are written."""
    weight, slice_ = 512 * 256 * 2, 128 * 256 * 2
    assert traffic_of(PROGRAM) == {
        "head": weight + 2 * 8 * 64 * 4,
        "weights": slice_ + weight,
        "cache written": 4 * 2 * 128 * 2,
        "other": 4 * 128 * 2 + 4 * 64 * 4 + 4 * 512 * 4,
    }


def test_collectives_and_kernels_are_found_by_kind_and_size() -> None:
    """An asynchronous one counts with its result; of several branches, the one that sends less counts;
    kernels are found by name."""
    assert set(collectives_of(PROGRAM)) == {
        ("all-reduce", 2, 4 * 256 * 2),
        ("all-gather", 1, 4 * 512 * 4),
        ("all-gather", 1, 8 * 64 * 4),
    }
    assert kernels_of(PROGRAM) == {"attend": 1}
