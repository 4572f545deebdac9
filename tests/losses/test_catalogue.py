"""Losses on ranks: values by hand, limits, masks, extremes, jit, members."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from made import KEY, call, grad, knobs_of, make_labels
from scipy.special import expit, logsumexp

from rm_jax.losses import LOSSES
from rm_jax.losses.ties import davidson_logp, rao_kupper_logp
from rm_jax.types import RewardOutput

RANKED = sorted(set(LOSSES) & {
    "bradley_terry", "bt", "margin_bt", "adaptive_margin", "scaled_bt", "hinge",
    "margin_mse", "label_smooth", "robust_bt", "soft_label", "rao_kupper", "davidson",
    "focal", "focal_penalty", "tempered_bt", "ce_pointwise", "bt_kwise",
    "plackett_luce", "best_of_k",
})  # fmt: skip
PAIRWISE = sorted(set(RANKED) - {"plackett_luce", "best_of_k"})
each = pytest.mark.parametrize("name", RANKED)
each_pairwise = pytest.mark.parametrize("name", PAIRWISE)


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def sp(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def one(name, delta, strength=2.0, **knobs):
    """The loss of a pair whose preferred response leads by delta."""
    labels = make_labels([[0, 1]], strength=[strength])
    return float(call(LOSSES[name], [[delta, 0.0]], labels, **knobs)[0])


# Name, knobs, lead of the preferred response, value by hand; the strength is 2.
BY_HAND = [
    ("bt", {}, 1.5, sp(-1.5)),
    ("margin_bt", {}, 1.5, sp(-0.5)),
    ("margin_bt", {"margin": 0.0, "margin_strength": 1 / 3}, 1.0, sp(2 / 3 - 1.0)),
    ("margin_bt", {"margin": 0.0, "margin_strength": 1.0}, 1.0, sp(1.0)),
    ("adaptive_margin", {}, 1.5, sp(0.5)),
    ("scaled_bt", {}, 1.5, 2 * sp(-1.5)),
    ("scaled_bt", {"scale": 0.25}, -1.0, 0.5 * sp(1.0)),
    ("hinge", {}, 0.25, 0.75),
    ("hinge", {}, 1.25, 0.0),
    ("hinge", {"margin": 2.0}, -1.0, 3.0),
    ("margin_mse", {}, 1.5, 0.25),
    ("margin_mse", {"margin": 0.5, "margin_strength": 1.0}, 1.5, 1.0),
    ("label_smooth", {"flips": 0.25}, 1.5, 0.75 * sp(-1.5) + 0.25 * sp(1.5)),
    ("robust_bt", {"flips": 0.25}, 1.5, (0.75 * sp(-1.5) - 0.25 * sp(1.5)) / 0.5),
    ("focal", {}, 0.0, 0.25 * math.log(2)),
    ("focal", {"gamma": 1.0}, 1.5, (1 - expit(1.5)) * sp(-1.5)),
    ("focal_penalty", {}, -1.5, sp(1.5)),
    ("focal_penalty", {"gamma": 2.0}, 1.5, (2 * (1 - expit(1.5))) ** 2 * sp(-1.5)),
    ("tempered_bt", {"temperature": 2.0}, 1.5, sp(-0.75)),
    ("tempered_bt", {"t": 0.0}, 1.5, 1 - expit(1.5)),
    ("tempered_bt", {"t": 0.5}, 1.5, 2 * (1 - math.sqrt(expit(1.5)))),
    ("ce_pointwise", {}, 1.5, sp(-1.5) + sp(0.0)),
    ("rao_kupper", {"threshold": 0.5}, 1.5, sp(-1.0)),
    ("davidson", {"ties": 1.0}, 2.0, -1 + math.log(math.e + 1 / math.e + 1)),
    ("best_of_k", {}, 1.5, sp(-1.5)),
    ("plackett_luce", {}, 1.5, sp(-1.5)),
]  # fmt: skip


@pytest.mark.parametrize("name, knobs, delta, want", BY_HAND)
def test_a_pair_by_hand(name, knobs, delta, want):
    assert one(name, delta, **knobs) == pytest.approx(want, rel=1e-5, abs=1e-7)


# Knobs with which a loss is `bt`.
LIMITS = [
    ("bradley_terry", {}),
    ("margin_bt", {"margin": 0.0}),
    ("scaled_bt", {"scale": 0.5}),
    ("label_smooth", {"flips": 0.0}),
    ("robust_bt", {"flips": 0.0}),
    ("soft_label", {}),
    ("focal", {"gamma": 0.0}),
    ("focal_penalty", {"gamma": 0.0}),
    ("tempered_bt", {}),
    ("bt_kwise", {}),
    ("plackett_luce", {}),
    ("best_of_k", {}),
]


@pytest.mark.parametrize("name, knobs", LIMITS)
def test_a_limit_is_bradley_terry(name, knobs):
    scores = np.random.default_rng(0).normal(size=(40, 2)) * 3
    labels = make_labels([[0, 1], [1, 0]] * 20, strength=np.full(40, 2.0))
    for evaluate in (call, grad):
        got = evaluate(LOSSES[name], scores, labels, **knobs)
        want = evaluate(LOSSES["bt"], scores, labels)
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-7)


def test_tempered_goes_over_into_the_logarithm():
    assert one("tempered_bt", 1.5, t=1 - 1e-6) == pytest.approx(sp(-1.5), rel=1e-5)


def test_robust_is_unbiased_under_flips():
    """(1 - e) loss(label) + e loss(flipped label) = bt on the true label."""
    scores, e = np.random.default_rng(1).normal(size=(50, 2)) * 2, 0.3
    true, flipped = make_labels([[0, 1]] * 50), make_labels([[1, 0]] * 50)
    robust = lambda labels: call(LOSSES["robust_bt"], scores, labels, flips=e)
    mean = (1 - e) * robust(true) + e * robust(flipped)
    np.testing.assert_allclose(mean, call(LOSSES["bt"], scores, true), atol=1e-6)


def test_smoothing_is_least_at_the_share_of_right_labels():
    delta = math.log(0.9 / 0.1)
    slope = grad(LOSSES["label_smooth"], [[delta, 0.0]], make_labels([[0, 1]]))
    np.testing.assert_allclose(slope, [[0.0, 0.0]], atol=1e-7)


@pytest.mark.parametrize("logp, knob", [(rao_kupper_logp, 0.7), (davidson_logp, 1.3)])
def test_the_three_outcomes_have_probabilities_that_sum_to_one(logp, knob):
    delta = jnp.linspace(-12.0, 12.0, 101)
    total = sum(jnp.exp(p) for p in logp(delta, jnp.float32(knob)))
    np.testing.assert_allclose(total, np.ones(101), rtol=1e-5)


@pytest.mark.parametrize("name", ["rao_kupper", "davidson"])
def test_a_tie_has_its_own_probability_and_is_likeliest_at_no_difference(name):
    labels = make_labels([[0, 0]] * 3)
    cost = call(LOSSES[name], [[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]], labels)
    assert cost[1] < cost[0] and cost[0] == pytest.approx(float(cost[2]), rel=1e-6)
    slope = grad(LOSSES[name], [[0.0, 0.0]], make_labels([[0, 0]]))
    np.testing.assert_allclose(slope, [[0.0, 0.0]], atol=1e-7)


def test_ties_by_hand():
    tie = make_labels([[0, 0]])
    got = call(LOSSES["davidson"], [[1.0, 1.0]], tie, ties=2.0)
    np.testing.assert_allclose(got, [-math.log(2 / 4)], rtol=1e-6)
    got = call(LOSSES["rao_kupper"], [[1.0, 1.0]], tie, threshold=math.log(2) / 2)
    p = 1 / (1 + math.sqrt(2))
    np.testing.assert_allclose(got, [-math.log(1 - 2 * p)], rtol=1e-5)


def test_plackett_luce_by_hand():
    got = call(LOSSES["plackett_luce"], [[2.0, 1.0, 0.0]], make_labels([[0, 1, 2]]))
    want = logsumexp([2, 1, 0]) - 2 + logsumexp([1, 0]) - 1
    np.testing.assert_allclose(got, [want], rtol=1e-6)


def test_plackett_luce_is_a_distribution_over_rankings():
    from itertools import permutations

    ranks = list(permutations(range(4)))
    got = call(
        LOSSES["plackett_luce"], [[0.3, -1.0, 2.0, 0.7]] * 24, make_labels(ranks)
    )
    assert float(jnp.sum(jnp.exp(-got))) == pytest.approx(1.0, rel=1e-5)


def test_plackett_luce_of_partial_and_tied_rankings_by_hand():
    labels = make_labels([[0, 1, -1], [0, 0, 1], [0, 1, 1], [0, 0, 0]])
    got = call(LOSSES["plackett_luce"], [[2.0, 1.0, 0.5]] * 4, labels)
    tied_best = sp(-(2.0 - 0.5)) + sp(-(1.0 - 0.5))
    want = [sp(-1.0), tied_best, logsumexp([2, 1, 0.5]) - 2, 0.0]
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["plackett_luce", "best_of_k"])
def test_a_soft_label_of_a_list_is_its_only_pair(name):
    """Ranks or none, three responses or two: it costs what bt costs."""
    for ranks in ([[0, 1, 2]], [[2, 1, 0]], [[-1, -1, -1]], [[-1, -1]]):
        labels = make_labels(ranks, soft=[0.8])
        scores = [[0.4, -0.3, 2.0][: len(ranks[0])]]
        want = 0.8 * sp(-0.7) + 0.2 * sp(0.7)
        np.testing.assert_allclose(
            call(LOSSES[name], scores, labels), [want], rtol=1e-5
        )


def test_a_tie_of_the_hinge_has_no_margin():
    labels = make_labels([[0, 0]])
    np.testing.assert_allclose(call(LOSSES["hinge"], [[0.3, 0.0]], labels), [0.15])


def test_best_of_k_by_hand():
    labels = make_labels([[1, 0, 1, 1], [0, 0, 1, -1], [0, 0, 0, 0], [-1] * 4])
    got = call(LOSSES["best_of_k"], [[0.5, 1.0, -1.0, 2.0]] * 4, labels)
    everything = logsumexp([0.5, 1, -1, 2])
    two = logsumexp([0.5, 1, -1]) - logsumexp([0.5, 1])
    np.testing.assert_allclose(
        got, [everything - 1, two, 0.0, 0.0], rtol=1e-6, atol=1e-7
    )


TIED = sorted(
    name for name in PAIRWISE if "tie_weight" in knobs_of(LOSSES[name])._fields
)


@pytest.mark.parametrize("name", TIED)
@pytest.mark.parametrize("tie_weight", [0.0, 0.5, 3.0])
def test_a_tied_pair_weighs_tie_weight(name, tie_weight):
    """Beside ordered pairs, and as a whole in an example of ties only."""
    scores = [[2.0, 1.5, 0.3], [2.0, 1.5, 9.0]]
    labels = make_labels([[0, 0, 1], [0, 0, -1]], strength=[1.5, 1.5])
    of = lambda **knobs: np.asarray(call(LOSSES[name], scores, labels, **knobs))
    alone = make_labels([[0, -1, 1], [-1, 0, 1]], strength=[1.5, 1.5])
    ordered = call(LOSSES[name], [scores[0]] * 2, alone)  # its two ordered pairs
    tie = of(tie_weight=1.0)[1]
    assert tie > 0
    want = (np.sum(ordered) + tie_weight * tie) / (2 + tie_weight)
    np.testing.assert_allclose(
        of(tie_weight=tie_weight), [want, tie_weight * tie], rtol=1e-5
    )


def test_kwise_drops_ties():
    labels = make_labels([[0, 0, 1]])
    got = call(LOSSES["bt_kwise"], [[2.0, 1.0, 0.0]], labels)
    np.testing.assert_allclose(got, [(sp(-2) + sp(-1)) / 2], rtol=1e-6)
    alone = call(LOSSES["bt_kwise"], [[2.0, 1.0]], make_labels([[0, 0]]))
    np.testing.assert_array_equal(alone, [0.0])


# With ties there are three outcomes, and a soft label is none of them.
@pytest.mark.parametrize(
    "name", [n for n in PAIRWISE if n not in ("rao_kupper", "davidson")]
)
def test_a_soft_label_is_between_the_two_hard_ones(name):
    labels = lambda soft: make_labels([[0, 1]], soft=[soft], strength=[2.0])
    cost = {p: call(LOSSES[name], [[1.0, -0.5]], labels(p)) for p in (0, 0.3, 1)}
    np.testing.assert_allclose(cost[0.3], 0.7 * cost[0] + 0.3 * cost[1], rtol=1e-5)
    hard = make_labels([[0, 1]], strength=[2.0])
    np.testing.assert_allclose(cost[1], call(LOSSES[name], [[1.0, -0.5]], hard))


@each_pairwise
def test_ordered_pairs_are_averaged_within_an_example(name):
    labels = make_labels([[0, 1, 2]], strength=[2.0])
    got = call(LOSSES[name], [[1.5, 0.2, -1.0]], labels)
    scores = [(1.5, 0.2), (1.5, -1.0), (0.2, -1.0)]
    pair = make_labels([[0, 1]] * 3, strength=[2.0] * 3)
    want = jnp.mean(call(LOSSES[name], scores, pair))
    np.testing.assert_allclose(got, [want], rtol=1e-6)


@each
def test_the_order_of_the_responses_does_not_matter(name):
    scores, ranks = np.array([[1.0, -0.5, 0.3, 2.0]]), np.array([[2, 0, -1, 1]])
    order = [3, 1, 0, 2]
    one = call(LOSSES[name], scores, make_labels(ranks, strength=[2.0]))
    other = make_labels(ranks[:, order], strength=[2.0])
    np.testing.assert_allclose(
        one, call(LOSSES[name], scores[:, order], other), rtol=1e-6
    )


# ce_pointwise asks each response by itself.
@pytest.mark.parametrize("name", [n for n in RANKED if n != "ce_pointwise"])
def test_only_differences_count(name):
    labels = make_labels([[0, 1, 2]], strength=[2.0])
    scores = np.array([[1.0, -0.5, 0.25]])
    one, other = (call(LOSSES[name], s, labels) for s in (scores, scores + 8))
    np.testing.assert_allclose(one, other, rtol=1e-6)


@each
@pytest.mark.parametrize("big", [1e4, -1e4])
def test_extremes_are_finite(name, big):
    labels = make_labels([[0, 1], [0, 0]], strength=[2.0, 2.0])
    scores = [[big, -big]] * 2
    assert np.isfinite(call(LOSSES[name], scores, labels)).all()
    assert np.isfinite(grad(LOSSES[name], scores, labels)).all()


@each
@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30])
def test_what_is_not_compared_has_no_part(name, junk):
    """Padding examples, absent and unranked responses, whatever their scores."""
    labels = make_labels(
        [[0, 1, -1, 2], [-1, -1, -1, -1]],
        present=[[1, 1, 1, 0], [0, 0, 0, 0]],
        strength=[2.0, np.nan],
    )
    scores = [[1.0, 0.0, junk, junk], [junk] * 4]
    got, slope = (f(LOSSES[name], scores, labels) for f in (call, grad))
    want = call(LOSSES[name], [[1.0, 0.0]], make_labels([[0, 1]], strength=[2.0]))
    np.testing.assert_allclose(got, [want[0], 0.0], rtol=1e-6)
    assert np.isfinite(slope).all() and not slope[1].any() and not slope[0, 2:].any()


@each
def test_one_response_costs_nothing(name):
    labels = make_labels([[0]], strength=[2.0])
    np.testing.assert_array_equal(call(LOSSES[name], [[3.0]], labels), [0.0])
    np.testing.assert_array_equal(grad(LOSSES[name], [[3.0]], labels), [[0.0]])


@each
def test_gradients_are_those_of_finite_differences(name):
    labels = make_labels([[0, 1, 2, 2], [1, 0, -1, 3]], strength=[2.0, 1.5])
    scores = jnp.array([[0.9, -0.4, 0.3, 0.1], [0.7, 0.2, -0.6, -1.1]])
    check_grads(
        lambda s: jnp.sum(call(LOSSES[name], s, labels)), (scores,), 1, ["rev"],
        atol=2e-3, rtol=2e-3,
    )  # fmt: skip


@each
def test_jit_and_members_change_nothing(name):
    fn, scores = LOSSES[name], np.random.default_rng(2).normal(size=(3, 5, 4))
    labels = make_labels([[0, 1, 2, -1]] * 5, strength=np.full(5, 2.0))
    apply = lambda s: fn(RewardOutput(s, {}, None), labels, knobs_of(fn), KEY)
    scores = jnp.asarray(scores, jnp.float32)
    alone = jnp.stack([apply(s) for s in scores])
    np.testing.assert_allclose(jax.jit(jax.vmap(apply))(scores), alone, rtol=2e-6)
