"""Regularisers: values by hand, numpy's correlation, global under any chunking."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax.losses.regularize import (
    WeightKnobs,
    center,
    length_correlation,
    length_sums,
    score_l2,
)
from rm_jax.types import Labels, RewardOutput

H = WeightKnobs()
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def make(scores, **fields):
    scores = jnp.asarray(scores, jnp.float32)
    e, k = scores.shape
    labels = Labels(
        ranks=np.tile(np.arange(k, dtype=np.int32), (e, 1)),
        present=np.ones((e, k), np.int32),
        soft=np.full(e, np.nan, np.float32),
        strength=np.full(e, np.nan, np.float32),
        weight=np.ones(e, np.float32),
        ratings=np.full((e, k, 1), np.nan, np.float32),
        steps=np.full((e, k, 1), -1, np.int32),
        lengths=np.ones((e, k), np.int32),
        ids=np.arange(e, dtype=np.int32),
        source=np.zeros(e, np.int32),
        reference_logp=np.full((e, k), np.nan, np.float32),
    )
    fields = {n: np.asarray(v, getattr(labels, n).dtype) for n, v in fields.items()}
    labels = jax.tree.map(jnp.asarray, labels._replace(**fields))
    return RewardOutput(scores, {}, None), labels


def correlation(scores, **fields):
    return length_correlation(length_sums(*make(scores, **fields), H), H)


def correlation_grad(scores, **fields):
    return jax.grad(lambda s: correlation(s, **fields))(
        jnp.asarray(scores, jnp.float32)
    )


def test_center_by_hand():
    out, labels = make(
        [[2.0, 1.0, -3.0], [1.0, 4.0, 7.0]], ranks=[[0, 1, 2], [0, 1, -1]]
    )
    got = center(out, labels, H, KEY)
    np.testing.assert_allclose(got, [(9 + 1 + 4) / 3, 25.0], rtol=1e-6)


def test_center_without_a_pair_is_zero():
    out, labels = make([[2.0, np.nan]], present=[[1, 0]])
    np.testing.assert_array_equal(center(out, labels, H, KEY), [0.0])
    value = lambda s: jnp.sum(center(out._replace(scores=s), labels, H, KEY))
    np.testing.assert_array_equal(jax.grad(value)(out.scores), [[0.0, 0.0]])


def test_center_counts_a_soft_pair():
    out, labels = make([[2.0, 1.0, 5.0]], ranks=[[-1, -1, -1]], soft=[0.5])
    np.testing.assert_allclose(center(out, labels, H, KEY), [9.0])


def test_score_l2_by_hand():
    out, labels = make(
        [[3.0, 1.0], [2.0, 9.0], [1.0, 1.0]],
        ranks=[[0, -1], [0, 1], [0, 1]],
        present=[[1, 1], [1, 0], [0, 0]],
    )
    np.testing.assert_allclose(score_l2(out, labels, H, KEY), [5.0, 4.0, 0.0])


def check_against_numpy(lengths, slope, rtol):
    rng = np.random.default_rng(0)
    scores = slope * (lengths - lengths.mean()) + rng.normal(size=lengths.shape)
    scores = scores.astype(np.float32)
    want = abs(np.corrcoef(scores.ravel(), lengths.ravel())[0, 1])
    np.testing.assert_allclose(correlation(scores, lengths=lengths), want, rtol=rtol)


def test_correlation_is_numpys():
    lengths = np.random.default_rng(1).integers(20, 900, size=(40, 3))
    check_against_numpy(lengths, slope=-0.004, rtol=1e-5)


def test_correlation_of_lengths_that_hardly_differ():
    """Sums of squares of uncentred lengths would leave 2 digits of the variance."""
    lengths = np.random.default_rng(1).integers(249, 252, size=(2000, 2))
    check_against_numpy(lengths, slope=0.5, rtol=1e-3)


def test_correlation_leaves_out_absent_responses_and_weights_examples():
    rng = np.random.default_rng(1)
    lengths, scores = rng.integers(20, 900, size=(9, 2)), rng.normal(size=(9, 2))
    present = np.ones((9, 2))
    present[3, 1] = 0
    weight = rng.integers(0, 3, size=9)
    w = (weight[:, None] * present).ravel()
    cov = np.cov(scores.ravel(), lengths.ravel(), aweights=w, ddof=0)
    want = abs(cov[0, 1]) / np.sqrt(cov[0, 0] * cov[1, 1])
    scores[3, 1], lengths[3, 1] = np.nan, 10**6
    got = correlation(scores, lengths=lengths, present=present, weight=weight)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_correlation_is_global_under_any_chunking():
    """Value and gradient of two summed chunks are those of one batch."""
    rng = np.random.default_rng(2)
    lengths, scores = rng.integers(20, 900, size=(8, 2)), rng.normal(size=(8, 2))

    def in_chunks(s):
        parts = [
            length_sums(*make_chunk(s[a:b], lengths[a:b]), H)
            for a, b in ((0, 3), (3, 8))
        ]
        return length_correlation(jax.tree.map(jnp.add, *parts), H)

    def make_chunk(s, l):
        out, labels = make(np.zeros(s.shape), lengths=l)
        return out._replace(scores=s), labels

    s = jnp.asarray(scores, jnp.float32)
    np.testing.assert_allclose(in_chunks(s), correlation(s, lengths=lengths), rtol=1e-5)
    np.testing.assert_allclose(
        jax.grad(in_chunks)(s),
        correlation_grad(s, lengths=lengths),
        rtol=1e-4,
        atol=1e-6,
    )


def test_correlation_gradient_numerically():
    rng = np.random.default_rng(3)
    lengths, scores = rng.integers(20, 900, size=(6, 2)), rng.normal(size=(6, 2))
    got = correlation_grad(scores, lengths=lengths)
    l = lengths.ravel()
    for i in range(scores.size):
        step = np.zeros(scores.size)
        step[i] = 1e-4
        up, down = (
            abs(np.corrcoef(scores.ravel() + sign * step, l)[0, 1]) for sign in (1, -1)
        )
        np.testing.assert_allclose(got.ravel()[i], (up - down) / 2e-4, atol=1e-4)


@pytest.mark.parametrize(
    "scores, fields",
    [
        (np.zeros((4, 2)), {"lengths": np.arange(8).reshape(4, 2)}),
        (np.full((4, 2), 1e4), {"lengths": np.arange(8).reshape(4, 2)}),
        (np.full((6, 2), 0.7), {"lengths": np.arange(12).reshape(6, 2)}),
        (np.arange(8.0).reshape(4, 2), {"lengths": np.full((4, 2), 77)}),
        (np.arange(8.0).reshape(4, 2), {"present": np.zeros((4, 2))}),
        (np.arange(2.0).reshape(1, 2), {"present": [[1, 0]]}),
    ],
)
def test_correlation_of_a_constant_is_zero_with_zero_gradient(scores, fields):
    assert correlation(scores, **fields) == 0.0
    np.testing.assert_array_equal(correlation_grad(scores, **fields), 0.0 * scores)


def test_perfect_correlation_is_one_and_ignores_the_sign():
    lengths = np.asarray([[10, 20], [30, 900]])
    for sign in (1, -1):
        got = correlation(sign * 0.01 * lengths, lengths=lengths)
        np.testing.assert_allclose(got, 1.0, rtol=1e-5)


def test_same_under_jit():
    out, labels = make([[1.0, 2.0], [0.0, -1.0]], lengths=[[5, 9], [2, 4]])
    for fn in (center, score_l2):
        np.testing.assert_allclose(
            jax.jit(fn)(out, labels, H, KEY), fn(out, labels, H, KEY), rtol=1e-6
        )
