"""The posterior of a last layer, by hand, by autodiff and by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from rm_jax.laplace import Margins, fit


def margins(features, weights, chance=None, weight=None):
    features = np.asarray(features, float)
    n = len(features)
    return Margins(
        features,
        features @ weights,
        np.ones(n) if chance is None else np.asarray(chance),
        np.ones(n) if weight is None else np.asarray(weight, float),
    )


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    weights = np.array([1.0, -0.5, 0.2])
    features = rng.normal(size=(80, 3))
    chance = (rng.random(80) < expit(features @ weights)).astype(float)
    return margins(features, weights, chance, rng.integers(1, 4, 80)), weights


def test_two_dimensions_by_hand():
    # Δ = 0 and Δ = log 3: σ(1 - σ) is 1/4 and 3/16. Pairs along the axes.
    weights = np.array([0.0, np.log(3.0)])
    found = fit([margins([[2.0, 0.0], [0.0, 1.0]], weights)], weights)
    np.testing.assert_allclose(np.sort(found.eigenvalues), [3 / 16, 1.0])
    d = found.prior_precision
    # Responses with the features (2, 0), (0, 0), (0, 4).
    cov = found.covariance(np.array([[2.0, 0.0], [0.0, 0.0], [0.0, 4.0]]))
    want = np.diag([4 / (1 + d), 0.0, 16 / (3 / 16 + d)])
    np.testing.assert_allclose(cov, want, atol=1e-12)
    value = np.log(0.5) + np.log(0.75) - d * np.log(3) ** 2 / 2
    value += np.log(d) - (np.log(1 + d) + np.log(3 / 16 + d)) / 2
    assert found.log_evidence == pytest.approx(value)


def test_the_covariance_is_the_inverse_hessian_of_the_log_posterior(drawn):
    pairs, weights = drawn
    found = fit([pairs], weights)

    def loss(w):
        delta = jnp.asarray(pairs.features) @ w
        nll = jax.nn.softplus(-delta) + (1 - pairs.chance) * delta
        return jnp.sum(pairs.weight * nll) + found.prior_precision * jnp.sum(w**2) / 2

    hessian = jax.hessian(loss)(jnp.asarray(weights))
    np.testing.assert_allclose(
        found.covariance(np.eye(3)), np.linalg.inv(np.asarray(hessian)), rtol=1e-4
    )


def test_the_prior_is_the_one_of_largest_evidence(drawn):
    pairs, weights = drawn
    found = fit([pairs], weights)
    share = found.eigenvalues / (found.eigenvalues + found.prior_precision)
    # MacKay's fixed point: δ |w|² = well-determined parameters
    want = share.sum() / np.sum(weights**2)
    assert found.prior_precision == pytest.approx(want, rel=1e-3)
    shrunk, grown = fit([pairs], weights / 3), fit([pairs], weights * 3)
    assert shrunk.prior_precision > found.prior_precision > grown.prior_precision


def test_the_evidence_is_the_integral_over_the_posterior():
    """One weight: the exact integral of likelihood and prior, by sums."""
    weights = np.array([0.8])
    features = np.random.default_rng(1).normal(size=(300, 1))
    chance = expit(features @ weights)  # soft labels: w is where they agree
    found = fit([margins(features, weights, chance)], weights)
    w = np.linspace(-4, 4, 4001)
    delta = features * w
    log = -np.logaddexp(0, -delta) - (1 - chance)[:, None] * delta
    prior = found.prior_precision
    total = log.sum(0) + np.log(prior / (2 * np.pi)) / 2 - prior * w**2 / 2
    exact = np.log(np.sum(np.exp(total - total.max())) * (w[1] - w[0])) + total.max()
    assert found.log_evidence == pytest.approx(exact, abs=0.05)


def test_blocks_scale_and_orientation_change_nothing(drawn):
    pairs, weights = drawn
    want = fit([pairs], weights)
    half = [Margins(*(x[part] for x in pairs)) for part in (slice(30), slice(30, None))]
    other = pairs._replace(
        features=-pairs.features, delta=-pairs.delta, chance=1 - pairs.chance
    )
    for same in (fit(half, weights), fit([other], weights)):
        assert same.prior_precision == pytest.approx(want.prior_precision, rel=1e-5)
        assert same.log_evidence == pytest.approx(want.log_evidence)
        x = np.arange(6.0).reshape(2, 3)
        np.testing.assert_allclose(same.covariance(x), want.covariance(x), rtol=1e-5)
    twice, scaled = fit([pairs, pairs], weights), fit([pairs], weights, scale=2.0)
    assert scaled.log_evidence == pytest.approx(twice.log_evidence)
    assert np.trace(twice.covariance(np.eye(3))) < np.trace(want.covariance(np.eye(3)))


def test_batches_of_responses_and_far_away(drawn):
    pairs, weights = drawn
    found = fit([pairs], weights)
    x = np.random.default_rng(2).normal(size=(4, 2, 3)).astype(np.float32)
    cov = found.covariance(x)
    assert cov.shape == (4, 2, 2)
    np.testing.assert_allclose(cov[1], found.covariance(x[1]))
    far = fit([margins(pairs.features * 1e4, weights)], weights)
    assert np.isfinite(far.covariance(x)).all() and np.isfinite(far.log_evidence)


def test_nothing_to_learn_from_is_refused():
    for features in (np.zeros((0, 2)), np.zeros((5, 2))):
        with pytest.raises(ValueError, match=f"{len(features)} training pairs whose"):
            fit([margins(features, np.ones(2))], np.ones(2))
