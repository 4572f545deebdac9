"""Bradley-Terry: values by hand, gradients, masks, symmetries."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from made import KEY, make_labels

from rm_jax.losses.pairwise import BradleyTerryKnobs, bradley_terry
from rm_jax.types import RewardOutput

PLAIN = BradleyTerryKnobs()


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def sp(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def loss(scores, labels, hparams=PLAIN):
    out = RewardOutput(jnp.asarray(scores, jnp.float32), {}, None)
    return bradley_terry(out, labels, hparams, KEY)


def grad(scores, labels, hparams=PLAIN):
    total = lambda s: jnp.sum(loss(s, labels, hparams))
    return jax.grad(total)(jnp.asarray(scores, jnp.float32))


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("chosen, rejected", [(1.5, 0.5), (-2.0, 3.0), (0.0, 0.0)])
def test_pair_by_hand(chosen, rejected, first):
    """The chosen response may be stored first or second."""
    scores, ranks = [chosen, rejected], [0, 1]
    if first:
        scores, ranks = scores[::-1], ranks[::-1]
    want = sp(-(chosen - rejected))
    np.testing.assert_allclose(loss([scores], make_labels([ranks])), [want], rtol=1e-6)


def test_gradient_is_minus_and_plus_sigmoid():
    got = grad([[1.5, 0.5]], make_labels([[0, 1]]))
    sigmoid = 1 / (1 + math.exp(1.0))
    np.testing.assert_allclose(got, [[-sigmoid, sigmoid]], rtol=1e-6)


def test_three_responses_by_hand():
    got = loss([[2.0, 1.0, 0.0]], make_labels([[0, 1, 2]]))
    np.testing.assert_allclose(got, [(sp(-1) + sp(-2) + sp(-1)) / 3], rtol=1e-6)
    np.testing.assert_allclose(got, [0.2511505], rtol=1e-6)


def test_margin_constant_and_from_strength():
    labels = make_labels([[0, 1], [1, 0], [0, 1]], strength=[2.0, 2.0, np.nan])
    hparams = BradleyTerryKnobs(margin=0.5, margin_strength=0.25)
    got = loss([[1.0, 0.0]] * 3, labels, hparams)
    np.testing.assert_allclose(got, [sp(0.0), sp(2.0), sp(-0.5)], rtol=1e-6)


def test_label_smoothing_keeps_the_margin_of_the_flipped_pair():
    hparams = BradleyTerryKnobs(margin=0.5, label_smoothing=0.1)
    got = loss([[2.0, 1.0]], make_labels([[0, 1]]), hparams)
    np.testing.assert_allclose(got, [0.9 * sp(-0.5) + 0.1 * sp(1.5)], rtol=1e-6)


def test_soft_label_replaces_the_ranks():
    labels = make_labels([[1, 0], [0, 1], [-1, -1]], soft=[0.7, 0.7, 0.7])
    hparams = BradleyTerryKnobs(margin=0.5)
    got = loss([[1.0, 0.0]] * 3, labels, hparams)
    np.testing.assert_allclose(got, [0.7 * sp(-0.5) + 0.3 * sp(1.5)] * 3, rtol=1e-6)


@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_certain_soft_label_is_the_hard_label(eps):
    hparams = BradleyTerryKnobs(margin=0.3, label_smoothing=eps)
    scores = [[1.0, -0.5], [1.0, -0.5]]
    hard = loss(scores, make_labels([[0, 1], [1, 0]]), hparams)
    soft = loss(scores, make_labels([[0, 0]] * 2, soft=[1.0, 0.0]), hparams)
    np.testing.assert_array_equal(hard, soft)


def test_soft_label_among_padding_responses():
    """A pair in a chunk whose widest example has four responses."""
    labels = make_labels([[0, 1, -1, -1]], soft=[0.7], present=[[1, 1, 0, 0]])
    got = loss([[1.0, 0.0, 9.0, 9.0]], labels)
    np.testing.assert_allclose(got, [0.7 * sp(-1) + 0.3 * sp(1)], rtol=1e-6)


def test_tie_is_even_and_has_no_margin():
    hparams = BradleyTerryKnobs(margin=0.5, label_smoothing=0.2)
    got = loss([[1.0, 0.0]], make_labels([[0, 0]]), hparams)
    np.testing.assert_allclose(got, [(sp(1) + sp(-1)) / 2], rtol=1e-6)


@pytest.mark.parametrize("tie_weight", [0.0, 0.5, 1.0, 3.0])
def test_tie_weight_is_relative_within_an_example(tie_weight):
    hparams = BradleyTerryKnobs(tie_weight=tie_weight)
    tie = (sp(1) + sp(-1)) / 2
    got = loss(
        [[2.0, 1.0, 0.0], [1.0, 0.0, 9.0]],
        make_labels([[0, 0, 1], [0, 0, -1]]),
        hparams,
    )
    mixed = (sp(-2) + sp(-1) + tie_weight * tie) / (2 + tie_weight)
    np.testing.assert_allclose(got, [mixed, tie_weight * tie], rtol=1e-6)


def test_defaults_and_zero_knobs_are_the_plain_loss():
    labels = make_labels([[0, 1]], strength=[3.0])
    zero = BradleyTerryKnobs(*(np.float32(v) for v in (0, 0, 0, 1)))
    np.testing.assert_array_equal(
        loss([[0.3, 0.9]], labels), loss([[0.3, 0.9]], labels, zero)
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"ranks": [[-1, -1, -1]]},
        {"ranks": [[0, -1, -1]]},
        {"ranks": [[0, 1, 2]], "present": [[1, 0, 0]]},
        {"ranks": [[0, 1, 2]], "present": [[0, 0, 0]]},
        {"ranks": [[0, 1, 2]], "present": [[1, 0, 1]], "soft": [0.5]},
    ],
)
def test_example_without_a_pair_is_zero_with_zero_gradient(fields):
    labels = make_labels(**fields)
    scores = [[1.0, 2.0, 3.0]]
    np.testing.assert_array_equal(loss(scores, labels), [0.0])
    np.testing.assert_array_equal(grad(scores, labels), np.zeros((1, 3)))


def test_one_response_only():
    labels = make_labels([[0]], soft=[0.5])
    np.testing.assert_array_equal(loss([[1.0]], labels), [0.0])
    np.testing.assert_array_equal(grad([[1.0]], labels), [[0.0]])


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e38])
def test_what_absent_or_unranked_responses_hold_does_not_matter(junk):
    labels = make_labels([[0, 1, 2, -1]], present=[[1, 1, 0, 1]])
    hparams = BradleyTerryKnobs(margin=0.1, label_smoothing=0.1)
    clean, dirty = [[0.2, 0.1, 0.0, 0.0]], [[0.2, 0.1, junk, junk]]
    np.testing.assert_array_equal(
        loss(clean, labels, hparams), loss(dirty, labels, hparams)
    )
    np.testing.assert_array_equal(
        grad(clean, labels, hparams), grad(dirty, labels, hparams)
    )


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_scores_stay_finite(size):
    labels = make_labels([[0, 1], [0, 0], [0, 1]], soft=[np.nan, np.nan, 0.3])
    hparams = BradleyTerryKnobs(margin=1.0, label_smoothing=0.1)
    scores = [[size, -size]] * 3
    got = loss(scores, labels, hparams)
    d = 2 * size
    pair = lambda q, m: q * sp(m - d) + (1 - q) * sp(d + m)
    want = [pair(0.9, 1), pair(0.5, 0), pair(0.3 * 0.9 + 0.7 * 0.1, 1)]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert np.isfinite(grad(scores, labels, hparams)).all()


def test_order_of_responses_does_not_matter():
    rng = np.random.default_rng(0)
    scores, ranks = rng.normal(size=(5, 6)), rng.integers(-1, 4, size=(5, 6))
    order = rng.permutation(6)
    hparams = BradleyTerryKnobs(0.3, 0.0, 0.1, 0.5)
    np.testing.assert_allclose(
        loss(scores, make_labels(ranks), hparams),
        loss(scores[:, order], make_labels(ranks[:, order]), hparams),
        rtol=1e-5,
    )


def test_only_differences_of_rewards_count():
    labels = make_labels([[0, 2, 1]])
    scores = np.asarray([[0.5, -1.0, 2.0]], np.float32)
    np.testing.assert_allclose(
        loss(scores, labels), loss(scores + 8, labels), rtol=1e-6
    )
    np.testing.assert_allclose(np.sum(grad(scores, labels)), 0.0, atol=1e-7)


def test_matches_a_loop_over_ordered_pairs():
    rng = np.random.default_rng(1)
    scores, ranks = rng.normal(size=(4, 7)), rng.integers(-1, 7, size=(4, 7))
    present = rng.integers(0, 2, size=(4, 7))
    got = loss(
        scores, make_labels(ranks, present=present), BradleyTerryKnobs(tie_weight=0.0)
    )
    for r, rank, here, value in zip(scores, ranks, present, got, strict=True):
        ok = [i for i in range(7) if here[i] and rank[i] >= 0]
        ls = [sp(-(r[i] - r[j])) for i in ok for j in ok if rank[i] < rank[j]]
        np.testing.assert_allclose(value, np.mean(ls) if ls else 0.0, rtol=1e-5)


def test_gradients_numerically():
    labels = make_labels([[0, 1, 1], [2, 0, 1]], strength=[1.0, 2.0])
    hparams = BradleyTerryKnobs(*(jnp.float32(v) for v in (0.3, 0.2, 0.1, 0.5)))
    scores = jnp.asarray([[0.5, -1.0, 2.0], [0.1, 0.2, 0.3]], jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        check_grads(
            lambda s, h: loss(s, labels, h), (scores, hparams), 1, ["rev"], rtol=2e-2
        )


def test_jit_and_members_give_the_same():
    """Knobs and scores with a member axis, as `vmap` over members passes them."""
    labels = make_labels([[0, 1], [1, 0]], strength=[1.0, 2.0])
    scores = jnp.asarray([[[0.5, -1.0], [0.1, 0.2]], [[3.0, 1.0], [0.0, 2.0]]])
    hparams = BradleyTerryKnobs(*jnp.asarray([[0, 1], [0, 1], [0, 0.2], [1, 1.0]]))
    both = jax.jit(jax.vmap(loss, in_axes=(0, None, 0)))(scores, labels, hparams)
    for m in range(2):
        one = loss(scores[m], labels, jax.tree.map(lambda h, m=m: h[m], hparams))
        np.testing.assert_allclose(both[m], one, rtol=1e-6)


def test_bfloat16_scores_give_a_float32_loss():
    out = RewardOutput(jnp.asarray([[1.0, 0.0]], jnp.bfloat16), {}, None)
    got = bradley_terry(out, make_labels([[0, 1]]), PLAIN, KEY)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, [sp(-1)], rtol=1e-6)
