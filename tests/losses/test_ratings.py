"""Losses on ratings and steps: values by hand and from scipy, masks, extremes, jit."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from made import KEY, knobs_of, make_labels
from scipy import stats
from scipy.special import expit

from rm_jax.losses.distributional import (
    gaussian_mle,
    gaussian_reparam,
    levels,
    quantile,
)
from rm_jax.losses.pointwise import binary, ordinal, regress
from rm_jax.losses.process import implicit_prm_ce, prm_bce, prm_hard, prm_soft
from rm_jax.types import RewardOutput

NAN = float("nan")
E, K, A, N, P = 2, 2, 1, 3, 3


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def f32(x):
    return jnp.asarray(x, jnp.float32)


def call(fn, labels, scores=((0.0, 0.0),), logp=None, key=KEY, knobs=None, **aux):
    aux = {name: f32(value) for name, value in aux.items()}
    out = RewardOutput(f32(scores), aux, None if logp is None else f32(logp))
    return fn(out, labels, knobs_of(fn, **(knobs or {})), key)


def rated(ratings, **fields):
    ratings = np.asarray(ratings, np.float32)
    return make_labels(np.zeros(ratings.shape[:2]), ratings=ratings, **fields)


def stepped(steps, **fields):
    steps = np.asarray(steps, np.float32)
    return make_labels(np.zeros(steps.shape[:2]), steps=steps, **fields)


def test_regress_is_the_mean_square_of_what_is_given():
    labels = rated([[[1.0, NAN], [2.0, 4.0]], [[NAN, NAN], [NAN, NAN]]])
    got = call(regress, labels, attributes=[[[0.5, 9.0], [2.0, 1.0]], [[1.0] * 2] * 2])
    np.testing.assert_allclose(got, [(0.25 + 0 + 9) / 3, 0.0], rtol=1e-6)


def test_ordinal_by_hand():
    """Three levels with thresholds at -1/2 and 1/2."""
    labels = rated([[[0.0], [1.0]], [[2.0], [NAN]]])
    got = call(ordinal, labels, attributes=[[[0.3]] * 2] * 2, knobs={"levels": 3})
    low, high = expit(-0.5 - 0.3), expit(0.5 - 0.3)
    want = [-(math.log(low) + math.log(high - low)) / 2, -math.log(1 - high)]
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("score", [-3.0, 0.0, 2.5, 30.0])
def test_ordinal_levels_have_probabilities_that_sum_to_one(score):
    labels = rated([[[float(c)]] for c in range(1, 6)])
    knobs = {"lowest": 1, "levels": 5, "gap": 0.7}
    got = call(ordinal, labels, attributes=[[[score]]] * 5, knobs=knobs)
    assert float(jnp.exp(-got).sum()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("rating", [-1.0, 5.0, 2.5])
def test_ordinal_of_no_level_is_nan(rating):
    labels = rated([[[rating]]])
    assert np.isnan(call(ordinal, labels, attributes=[[[0.0]]])).all()


def test_binary_by_hand():
    labels = rated([[[1.0], [0.0]], [[NAN], [0.25]]])
    knobs = {"reference": 0.5, "desirable": 2.0, "undesirable": 3.0}
    got = call(binary, labels, scores=[[1.0, -1.0], [7.0, 1.0]], knobs=knobs)
    sp = lambda x: math.log1p(math.exp(x))
    first = (2 * sp(-0.5) + 3 * sp(-1.5)) / 2
    second = 0.25 * 2 * sp(-0.5) + 0.75 * 3 * sp(0.5)
    np.testing.assert_allclose(got, [first, second], rtol=1e-6)


@pytest.mark.parametrize("fn", [binary, implicit_prm_ce])
def test_several_attributes_are_refused_where_one_is_meant(fn):
    labels = rated([[[1.0, 2.0], [0.0, 1.0]]])
    with pytest.raises(ValueError, match="2 attributes"):
        call(fn, labels, logp=[[0.0, 0.0]])


def test_quantile_levels_and_pinball_by_hand():
    np.testing.assert_allclose(levels(3), np.linspace(0, 1, 5)[1:-1], rtol=1e-6)
    labels = rated([[[2.0]]])
    got = call(quantile, labels, quantiles=[[[[1.0, 2.0, 4.0]]]])
    np.testing.assert_allclose(got, [0.25 * 1 + 0 + 0.25 * 2], rtol=1e-6)


def test_quantile_is_least_at_the_quantiles_of_the_ratings():
    y = np.random.default_rng(0).exponential(size=4001)
    labels = rated(y[None, :, None])
    want = np.quantile(y, [0.25, 0.5, 0.75])

    def cost(q):
        q = jnp.tile(q, (1, len(y), 1, 1))
        out = RewardOutput(jnp.zeros((1, len(y))), {"quantiles": q}, None)
        return quantile(out, labels, knobs_of(quantile), KEY)[0]

    slope = jax.grad(cost)(f32(want))
    np.testing.assert_allclose(slope, np.zeros(3), atol=1e-3)


def test_gaussian_mle_is_scipys_density():
    labels = rated([[[2.0], [0.0]]])
    got = call(
        gaussian_mle, labels, attributes=[[[1.0], [-0.5]]], log_std=[[[0.3], [-1.0]]]
    )
    want = [
        stats.norm.logpdf(2, 1, math.exp(0.3)),
        stats.norm.logpdf(0, -0.5, 1 / math.e),
    ]
    np.testing.assert_allclose(got, [-np.mean(want)], rtol=1e-5)


def test_gaussian_reparam_has_the_expectation_of_its_docstring():
    labels = rated(np.full((1, 20000, 1), 2.0))
    full = lambda x: np.full((1, 20000, 1), x)
    got = call(gaussian_reparam, labels, attributes=full(1.0), log_std=full(-0.5))
    np.testing.assert_allclose(got, [1 + math.exp(-1.0)], rtol=0.03)
    other = call(gaussian_reparam, labels, key=jax.random.key(1),
                 attributes=full(1.0), log_std=full(-0.5))  # fmt: skip
    assert float(other[0]) != float(got[0])
    # At μ = y what is left is ε σ squared: every rating has a noise of its own.
    wide = lambda x: np.full((1, 2, 1), x)
    at = {"attributes": wide(0.0), "log_std": wide(0.0)}
    many = jax.vmap(lambda k: call(gaussian_reparam, rated(wide(0.0)), key=k, **at))
    found = np.asarray(many(jax.random.split(KEY, 4000)))[:, 0]
    # The mean of two squares of independent normals: mean 1, variance 2 / 2.
    assert found.mean() == pytest.approx(1.0, abs=0.08)
    assert found.var() == pytest.approx(1.0, abs=0.2)


def test_steps_by_hand():
    labels = stepped([[[1.0, 0.0, -1.0], [0.25, -1.0, -1.0]]])
    scores = [[[2.0, -1.0, 5.0], [0.5, 5.0, 5.0]]]
    right, wrong = (
        (lambda s: math.log1p(math.exp(-s))),
        (lambda s: math.log1p(math.exp(s))),
    )
    two = right(2.0) + wrong(-1.0)
    for fn, third in [
        (prm_bce, wrong(0.5)),
        (prm_hard, right(0.5)),
        (prm_soft, 0.25 * right(0.5) + 0.75 * wrong(0.5)),
    ]:
        got = call(fn, labels, steps=scores)
        np.testing.assert_allclose(got, [(two + third) / 3], rtol=1e-6)


def test_a_neutral_step_counts_as_right():
    got = call(prm_bce, stepped([[[0.5]]]), steps=[[[1.0]]])
    np.testing.assert_allclose(got, [math.log1p(math.exp(-1))], rtol=1e-6)


def test_implicit_prm_by_hand():
    """It is the cross-entropy of the score of the head, which has β."""
    labels = rated([[[1.0], [0.0]], [[0.25], [NAN]]])
    got = call(implicit_prm_ce, labels, scores=[[1.0, -1.0], [2.0, 5.0]])
    soft = 0.25 * math.log1p(math.exp(-2)) + 0.75 * math.log1p(math.exp(2))
    np.testing.assert_allclose(got, [math.log1p(math.exp(-1.0)), soft], rtol=1e-6)


ALL = [
    regress, ordinal, binary, quantile, gaussian_mle, gaussian_reparam, prm_bce,
    prm_hard, prm_soft, implicit_prm_ce,
]  # fmt: skip
each = pytest.mark.parametrize("fn", ALL)


def everything(value, e=E):
    """Outputs that all have this value."""
    aux = {"attributes": (e, K, A), "log_std": (e, K, A), "quantiles": (e, K, A, N)}
    aux["steps"] = (e, K, P)
    full = lambda shape: jnp.full(shape, value, jnp.float32)
    return RewardOutput(
        full((e, K)), {n: full(s) for n, s in aux.items()}, full((e, K))
    )


def all_labels(e=E):
    ratings = np.tile(np.array([[[1.0], [0.0]]]), (e, 1, 1))
    return rated(
        ratings,
        steps=np.tile(np.array([[[1.0, 0.0, -1.0]] * 2]), (e, 1, 1)),
        reference_logp=np.zeros((e, K)),
    )


# The heads keep log σ in bounds; of both Gaussians test_identities.py has extremes.
@pytest.mark.parametrize(
    "fn", [fn for fn in ALL if fn not in (gaussian_mle, gaussian_reparam)]
)
@pytest.mark.parametrize("big", [1e4, -1e4])
def test_extremes_are_finite(fn, big):
    cost = lambda out: jnp.sum(fn(out, all_labels(), knobs_of(fn), KEY))
    value, slope = jax.value_and_grad(cost)(everything(big))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, slope)))


@each
def test_what_is_not_given_has_no_part(fn):
    labels = all_labels()
    nothing = rated(np.full((E, K, A), NAN), steps=np.full((E, K, P), -1.0))
    absent = labels._replace(present=jnp.zeros((E, K), jnp.int32))
    for none in (nothing, absent):
        cost = lambda out, none=none: jnp.sum(fn(out, none, knobs_of(fn), KEY))
        value, slope = jax.value_and_grad(cost)(everything(NAN))
        assert value == 0.0
        assert not any(np.asarray(x).any() for x in jax.tree.leaves(slope))


@each
def test_gradients_are_those_of_finite_differences(fn):
    keys = jax.random.split(jax.random.key(3), 3)
    out = everything(0.0)
    aux = {n: 0.3 * jax.random.normal(keys[0], x.shape) for n, x in out.aux.items()}
    out = RewardOutput(jax.random.normal(keys[1], (E, K)), aux, out.token_logp - 1.0)
    cost = lambda out: jnp.sum(fn(out, all_labels(), knobs_of(fn), KEY))
    check_grads(cost, (out,), 1, ["rev"], atol=3e-3, rtol=3e-3)


@each
def test_jit_and_members_change_nothing(fn):
    apply = lambda out: fn(out, all_labels(), knobs_of(fn), KEY)
    outs = [everything(x) for x in (-0.5, 0.1, 2.0)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *outs)
    alone = jnp.stack([apply(out) for out in outs])
    np.testing.assert_allclose(jax.jit(jax.vmap(apply))(stacked), alone, rtol=2e-6)
