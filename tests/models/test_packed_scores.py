"""Packed = padded: the score of a response does not depend on what it is packed with."""

import dataclasses

import jax
import numpy as np
import pytest

from rm_jax.data import pack
from rm_jax.data.loader import Loader
from rm_jax.models import ArchConfig, RewardModel

ARCH = ArchConfig(
    vocab_size=97,
    d_model=32,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=48,
    attention_block=16,
    head_init="normal",
)


def init(arch):
    model = RewardModel(arch)
    zeros = np.zeros((1, 16), np.int32)
    from rm_jax.types import PackedBatch

    batch = PackedBatch(
        zeros, zeros, zeros, zeros, zeros[:, :2], np.full((1, 2, 3), -1, np.int32)
    )
    return model, model.init(jax.random.key(1), batch, 1, 1)


def scores(model, params, data, shapes, layout, examples=4):
    """[n, K] scores of a whole set."""
    loader = Loader(data, shapes, examples, layout=layout)
    apply = jax.jit(
        lambda p, b, e, k: model.apply(p, b, e, k).scores, static_argnums=(2, 3)
    )
    out = np.full((len(data), data.max_responses), np.nan)
    for step in loader.in_order(block=examples):
        for batch, labels in step.chunks:
            s = np.asarray(apply(params, batch, *labels.ranks.shape))
            ids = labels.ids >= 0
            out[labels.ids[ids]] = np.where(labels.present[ids], s[ids], np.nan)
    return out


def assert_same(a, b):
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    assert np.all(np.abs(a - b) <= 1e-5 * np.maximum(1, np.abs(b)))


PADDED = pack.shapes((64,), 64 * 16, 4)  # 16 rows of one response each
PACKED = pack.shapes((16, 32, 64), 256, 4)


@pytest.mark.parametrize("k", range(1, 10))
def test_packed_equals_padded(toy_set, k):
    rng = np.random.default_rng(k)
    examples = [
        (int(rng.integers(2, 30)), rng.integers(1, 12, k).tolist()) for _ in range(6)
    ]
    data = toy_set(examples)
    model, params = init(ARCH)
    packed = scores(model, params, data, PACKED, "packed")
    padded = scores(model, params, data, PADDED, "padded", examples=1)
    assert_same(packed, padded)
    assert np.nanstd(packed) > 0.1  # a constant would pass too


def test_one_example_of_44_responses(toy_set):
    rng = np.random.default_rng(0)
    data = toy_set([(9, rng.integers(1, 9, 44).tolist()), (4, [1, 2])])
    model, params = init(ARCH)
    packed = scores(model, params, data, pack.shapes((32, 64), 512, 4), "packed")
    padded = scores(model, params, data, pack.shapes((64,), 64 * 44, 4), "padded", 1)
    assert_same(packed, padded)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("max_length", [12, 17, 33, 64])
def test_every_truncation(toy_set, side, max_length):
    examples = [(40, [3, 11, 7]), (2, [1, 1]), (11, [1, 5]), (60, [10, 1, 1, 9])]
    data = toy_set(examples, max_length=max_length, side=side)
    model, params = init(ARCH)
    packed = scores(model, params, data, PACKED, "packed")
    assert_same(packed, scores(model, params, data, PADDED, "padded", examples=1))


@pytest.mark.parametrize(
    "change",
    [
        {"pooling": "mean"},
        {"pooling": "sum"},
        {"windows": (4, 0), "n_layers": 5},
        {"remat": "layer"},
        {"n_layers": 1},
        {"n_kv_heads": 4},
    ],
    ids=str,
)
def test_variants(toy_set, change):
    data = toy_set([(20, [5, 9]), (3, [12, 2, 6]), (25, [4, 4])])
    model, params = init(dataclasses.replace(ARCH, **change))
    packed = scores(model, params, data, PACKED, "packed")
    assert_same(packed, scores(model, params, data, PADDED, "padded", examples=1))


def test_bfloat16_stays_close(toy_set):
    data = toy_set([(20, [5, 9]), (3, [12, 2, 6])])
    model, params = init(ARCH)
    half, _ = init(dataclasses.replace(ARCH, dtype="bfloat16"))
    a = scores(model, params, data, PACKED, "packed")
    b = scores(half, params, data, PACKED, "packed")
    assert np.nanmax(np.abs(a - b)) < 0.1
    assert np.nanmax(np.abs(a - b)) > 0  # it did compute in bfloat16


def test_sharing_stores_the_prompt_once(toy_set):
    data = toy_set([(30, [4, 4, 4])])
    loader = Loader(data, PACKED, 1)
    (step,) = loader.in_order()
    assert step.tokens == 30 + 3 * 4
