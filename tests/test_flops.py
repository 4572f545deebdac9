"""Model FLOPs by hand, and what jax counts; peaks of devices by their names."""

import dataclasses

import jax
import numpy as np
import pytest

from rm_jax import models
from rm_jax.data import pack
from rm_jax.data.loader import Loader
from rm_jax.flops import forward_flops, keys_seen, peak_flops, step_flops
from rm_jax.models import ArchConfig
from rm_jax.types import PackedBatch

ARCH = ArchConfig(
    vocab_size=32, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=16
)
# Of a layer: q 8 x 8, k and v 8 x 4 each, o 8 x 8, gate, up and down 8 x 16 each.
KV, REST = 2 * 32, 2 * 64 + 3 * 128


def batch(*rows, slots=2):
    """Each row: segments, each (prompt length, response lengths)."""
    width = max(sum(p + sum(r) for p, r in row) for row in rows) + 3  # some padding
    arrays = {n: np.zeros((len(rows), width), np.int32) for n in ("seg", "br", "pos")}
    at_slots = np.zeros((len(rows), slots), np.int32)
    ids = np.full((len(rows), slots, 3), -1, np.int32)
    for b, row in enumerate(rows):
        at = slot = 0
        for number, (prompt, responses) in enumerate(row, 1):
            lengths = [prompt, *responses]
            for branch, n in enumerate(lengths):
                cut = slice(at, at + n)
                arrays["seg"][b, cut], arrays["br"][b, cut] = number, branch
                start = prompt if branch else 0
                arrays["pos"][b, cut] = np.arange(start, start + n)
                at += n
                if branch:
                    at_slots[b, slot], ids[b, slot] = at - 1, (b, slot, 0)
                    slot += 1
    seg, br, pos = arrays.values()
    return PackedBatch(seg * 0, pos, seg, br, at_slots, ids)


def test_keys_are_those_behind_the_mask():
    one = batch([(3, (2, 1))])
    assert keys_seen(one, 0, True).tolist() == [[1, 2, 3, 4, 5, 4, 0, 0, 0]]
    assert keys_seen(one, 2, True).tolist() == [[1, 2, 2, 2, 2, 2, 0, 0, 0]]
    padded = batch([(2, (2,))])
    assert keys_seen(padded, 0, False).tolist() == [[4, 4, 4, 4, 0, 0, 0]]
    assert keys_seen(padded, 2, False).tolist() == [[2, 3, 3, 2, 0, 0, 0]]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 1, 3, 99])
def test_keys_agree_with_the_mask_itself(window, causal):
    from rm_jax.models.attention import Place, tree_mask

    rows = ([(3, (2, 4)), (1, (1,))], [(2, (5,))]) if causal else ([(3, (4,))],)
    b = batch(*rows, slots=3)
    index = np.broadcast_to(np.arange(b.tokens.shape[1])[None], b.tokens.shape)
    place = Place(index, b.positions, b.segments, b.branches)
    mask = np.asarray(tree_mask(place, place, window, causal))
    want = mask.sum(-1) * (b.segments > 0)
    np.testing.assert_array_equal(keys_seen(b, window, causal), want)


def test_a_forward_pass_by_hand():
    """A prompt of 3 tokens with responses of 2 and 1: 6 tokens, 2 of them scored."""
    one = batch([(3, (2, 1))])
    first = 2 * 6 * (KV + REST) + 4 * 8 * (1 + 2 + 3 + 4 + 5 + 4)
    last = 2 * (6 * KV + 2 * REST) + 4 * 8 * (5 + 4)
    assert forward_flops(ARCH, one, False) == first + last + 2 * 2 * 8
    whole = dataclasses.replace(ARCH, pooling="mean")
    assert forward_flops(whole, one, False) == 2 * first + 2 * 2 * 8
    logp = 2 * first + 2 * 2 * 8 + 2 * 3 * 32 * 8
    assert forward_flops(ARCH, one, True) == logp


def test_windows_alternate_over_the_layers():
    one = batch([(3, (2, 1))])
    arch = dataclasses.replace(ARCH, pooling="mean", windows=(2, 0))
    both = forward_flops(arch, one, False)
    wide = forward_flops(dataclasses.replace(arch, windows=(0,)), one, False)
    assert wide - both == 4 * 8 * (1 + 2 + 3 + 2)  # 3, 4, 5, 4 keys become 2 each


def test_padding_is_free_and_a_shared_prompt_counts_once():
    shared = forward_flops(ARCH, batch([(9, (2, 2))]), False)
    apart = forward_flops(ARCH, batch([(9, (2,)), (9, (2,))]), False)
    beside = forward_flops(ARCH, batch([(9, (2, 2))], [(1, (1,))]), False)
    alone = forward_flops(ARCH, batch([(1, (1,))]), False)
    assert shared < apart and beside == shared + alone
    assert forward_flops(ARCH, batch([]), False) == 0


def test_large_models_come_to_six_n_a_token():
    arch = ArchConfig(
        vocab_size=128, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=8,
        head_dim=128, d_ff=14336, pooling="mean",
    )  # fmt: skip
    weights = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    one = batch([(500, (500,))])
    six = 3 * forward_flops(arch, one, False) / (6 * weights * 1000)
    assert 1 < six < 1.02  # attention over 1,000 tokens


def test_a_step_is_three_passes_over_the_rows_of_all_hosts(toy_set):
    shapes = pack.shapes((64,), 256, 16)
    data = toy_set([(9, (4, 5)), (20, (3, 3)), (12, (1, 30)), (15, (2, 8))])
    whole = Loader(data, shapes, 4).batch_at(0)
    ours = sum(forward_flops(ARCH, chunk, False) for chunk, _ in whole.chunks)
    assert step_flops(ARCH, whole, False) == 3 * ours > 0
    halves = [
        Loader(data, shapes, 4, rows=lambda shape, h=h: slice(2 * h, 2 * h + 2))
        for h in range(2)
    ]
    both = [step_flops(ARCH, loader.batch_at(0), False) for loader in halves]
    assert np.mean(both) == 3 * ours


def test_xla_counts_the_same_products():
    """Of one full segment; XLA's attention has all n x n pairs, ours those it uses."""
    arch = dataclasses.replace(
        ARCH, d_model=64, head_dim=32, d_ff=256, pooling="sum", attention_block=256
    )
    n = 256
    full = batch([(n - 1, (1,))])
    names = ("tokens", "positions", "segments", "branches")
    full = full._replace(**{k: getattr(full, k)[:, :n] for k in names})
    init, apply = models.functions(arch)
    params = jax.eval_shape(init, jax.random.key(0))
    forward = jax.jit(lambda p, b: apply(p, b, 1, 2, None).scores)
    products = 2 * n * 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 256)
    pair = 2 * 4 * 64  # both layers
    ours = forward_flops(arch, full, False)
    assert ours == products + pair * n * (n + 1) // 2 + 2 * 64
    counted = forward.lower(params, full).cost_analysis()["flops"]
    assert counted == pytest.approx(products + pair * n * n, rel=0.1)


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("TPU v4", 275e12), ("TPU v5 lite", 197e12), ("TPU v5", 459e12),
        ("TPU v5p", 459e12), ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12), ("NVIDIA B200", 2250e12),
        ("cpu", None), ("TPU v3", None), ("NVIDIA GB200", None), ("TPU v4 lite", None),
    ],
)  # fmt: skip
def test_peaks(kind, peak):
    assert peak_flops([kind]) == peak
    assert peak_flops([kind] * 8) == (None if peak is None else 8 * peak)


def test_one_unknown_device_leaves_the_peak_unknown():
    assert peak_flops(["NVIDIA H100 80GB HBM3", "cpu"]) is None
