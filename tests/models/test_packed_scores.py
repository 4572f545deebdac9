"""Packed = padded: a score does not depend on what its response is packed with.

The padded side is one response a row and plain (dense) attention; the packed side
shares prompts, mixes examples in a row and computes attention by blocks.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from rm_jax.data import pack
from rm_jax.data.loader import Loader
from rm_jax.models import ArchConfig, functions, reward
from rm_jax.types import PackedBatch

ARCH = ArchConfig(
    vocab_size=97,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=48,
    attention_block=16,
    head_init="normal",
)
# One number of responses for every case, so that all share the compiled programs.
K = 44
PADDED = pack.shapes((64,), 64 * K, 4)
PACKED = pack.shapes((16, 32, 64), 256, 4)
LONG = PACKED[-1:]


@functools.cache
def program(arch):
    apply = functions(arch)[1]
    return jax.jit(lambda p, b, e: apply(p, b, e, K, None).scores, static_argnums=2)


def scores(arch, params, data, shapes, layout, examples=4):
    """[n, K] scores of a whole set, and the row lengths they were computed in."""
    out, used = np.full((len(data), K), np.nan), set()
    for step in Loader(data, shapes, examples, layout=layout).in_order(block=examples):
        for batch, labels in step.chunks:
            e, k = labels.ranks.shape
            s = np.asarray(program(arch)(params, batch, e))
            used.add(batch.tokens.shape[1])
            ids = labels.ids >= 0
            assert np.isnan(out[labels.ids[ids]]).all(), "an example in two chunks"
            present = np.pad(labels.present[ids], ((0, 0), (0, K - k)))
            out[labels.ids[ids]] = np.where(present, s[ids], np.nan)
    return out, used


def padded_scores(arch, params, data):
    dense = dataclasses.replace(arch, attention_block=128, remat="none")
    examples = K // data.max_responses  # as many as surely have a row each
    return scores(dense, params, data, PADDED, "padded", examples)[0]


def assert_same(a, b):
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    assert np.all(np.abs(a - b) <= 1e-5 * np.maximum(1, np.abs(b)))


@pytest.mark.parametrize("k", range(1, 10))
def test_packed_equals_padded(toy_set, fresh_params, k):
    rng = np.random.default_rng(k)
    examples = [
        (int(rng.integers(2, 30)), rng.integers(1, 12, k).tolist()) for _ in range(6)
    ]
    data = toy_set(examples)
    params = fresh_params(ARCH)
    packed, _ = scores(ARCH, params, data, PACKED, "packed")
    assert_same(packed, padded_scores(ARCH, params, data))
    assert (~np.isnan(packed)).sum() == 6 * k
    assert np.nanstd(packed) > 0.1  # a constant would pass too


def test_every_row_length_is_compared(toy_set, fresh_params):
    data = toy_set([(9, [5, 2])] * 9 + [(12, [10, 9])] * 9 + [(30, [16, 18])] * 9)
    params = fresh_params(ARCH)
    packed, used = scores(ARCH, params, data, PACKED, "packed", examples=9)
    assert used == {16, 32, 64}
    assert_same(packed, padded_scores(ARCH, params, data))


def test_one_example_of_44_responses(toy_set, fresh_params):
    rng = np.random.default_rng(0)
    data = toy_set([(9, rng.integers(1, 5, 44).tolist()), (4, [1, 2])])
    params = fresh_params(ARCH)
    packed, _ = scores(ARCH, params, data, PACKED, "packed")
    assert_same(packed, padded_scores(ARCH, params, data))


def test_a_response_of_one_token(toy_set, fresh_params):
    data = toy_set([(1, [1, 1, 3]), (20, [1]), (62, [1, 1])])
    params = fresh_params(ARCH)
    packed, _ = scores(ARCH, params, data, PACKED, "packed")
    assert_same(packed, padded_scores(ARCH, params, data))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("max_length", [12, 17, 33, 64])
def test_every_truncation(toy_set, fresh_params, side, max_length):
    examples = [(40, [3, 11, 7]), (2, [1, 1]), (11, [1, 5]), (60, [10, 1, 1, 9])]
    data = toy_set(examples, max_length=max_length, side=side)
    assert (data.per_response("prompt_keep", 3) < 60).any(), "nothing was cut"
    params = fresh_params(ARCH)
    packed, _ = scores(ARCH, params, data, PACKED, "packed")
    assert_same(packed, padded_scores(ARCH, params, data))


@pytest.mark.parametrize(
    "change",
    [
        {"pooling": "mean"},
        {"pooling": "sum"},
        {"windows": (4, 0), "n_layers": 4},
        {"remat": "layer"},
        {"n_layers": 1},
        {"n_kv_heads": 4},
    ],
    ids=str,
)
def test_variants(toy_set, fresh_params, change):
    data = toy_set([(20, [5, 9]), (3, [12, 2, 6]), (25, [4, 4])])
    arch = dataclasses.replace(ARCH, **change)
    params = fresh_params(arch)
    packed, _ = scores(arch, params, data, LONG, "packed")
    assert_same(packed, padded_scores(arch, params, data))


def test_bfloat16_stays_close(toy_set, fresh_params):
    data = toy_set([(20, [5, 9]), (3, [12, 2, 6])])
    half = dataclasses.replace(ARCH, dtype="bfloat16")
    params = fresh_params(ARCH)
    a, _ = scores(ARCH, params, data, LONG, "packed")
    b, _ = scores(half, params, data, LONG, "packed")
    assert np.nanmax(np.abs(a - b)) < 0.1
    assert np.nanmax(np.abs(a - b)) > 0  # it did compute in bfloat16


def test_sharing_stores_the_prompt_once(toy_set):
    data = toy_set([(30, [4, 4, 4])])
    (step,) = Loader(data, PACKED, 1).in_order()
    assert step.tokens == 30 + 3 * 4
    (step,) = Loader(data, PADDED, 1, layout="padded").in_order()
    assert step.tokens == 3 * (30 + 4)


def test_what_a_head_is_given_of_its_prompt_and_response():
    """A row of two prompts, of 2 and 1 tokens, with responses of 1, 1 and 2."""
    row = lambda *values: np.asarray([values], np.int32)
    batch = PackedBatch(
        tokens=row(5, 6, 7, 8, 9, 5, 6, 0),
        positions=row(0, 1, 2, 2, 0, 1, 2, 0),
        segments=row(1, 1, 1, 1, 2, 2, 2, 0),
        branches=row(0, 0, 1, 2, 0, 1, 1, 0),
        slots=row(2, 3, 6),
        slot_ids=np.asarray([[[0, 0, 0], [0, 1, 0], [1, 0, 0]]], np.int32),
    )
    np.testing.assert_array_equal(reward.prompt_ends(batch), [[1, 1, 4]])
    lengths = np.asarray(reward.same_response(batch)).sum(-1)
    np.testing.assert_array_equal(lengths, [[1, 1, 2]])
