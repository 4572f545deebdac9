"""Label noise and bootstrap weights: functions of the example and a seed."""

import math

import numpy as np
import pytest

from rm_jax.data.relabel import Relabel, relabel, uniform
from rm_jax.types import Labels

NAN = float("nan")


def make_labels(n=6, ranks=None, soft=NAN):
    ranks = np.tile([0, 1], (n, 1)) if ranks is None else np.array(ranks)
    shape = ranks.shape
    return Labels(
        ranks=ranks,
        present=np.ones(shape, np.int32),
        soft=np.full(n, soft, np.float32),
        strength=np.full(n, 2.0, np.float32),
        weight=np.full(n, 3.0, np.float32),
        ratings=np.zeros((*shape, 0), np.float32),
        steps=np.zeros((*shape, 0), np.int32),
        lengths=np.ones(shape, np.int32),
        ids=np.arange(n),
        source=np.zeros(n, np.int32),
        reference_logp=np.full(shape, np.nan, np.float32),
    )


def test_nothing_is_asked_nothing_changes():
    labels = make_labels()
    assert relabel(labels, Relabel()) is labels


def test_turned_examples_have_reversed_ranks_and_the_other_chance():
    labels = make_labels(3, [[0, 1, 2, -1], [1, 0, 0, 3], [0, 0, -1, -1]], soft=0.25)
    found = relabel(labels, Relabel(noise=1.0))
    assert found.ranks.tolist() == [[2, 1, 0, -1], [2, 3, 3, 0], [0, 0, -1, -1]]
    assert found.soft.tolist() == [0.75] * 3
    assert found.strength.tolist() == [2.0] * 3 and found.weight.tolist() == [3.0] * 3
    assert relabel(found, Relabel(noise=1.0)).ranks.tolist() == labels.ranks.tolist()


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5])
def test_the_share_of_turned_examples_is_the_noise(rate):
    n = 40_000
    found = relabel(make_labels(n), Relabel(noise=rate))
    turned = (found.ranks[:, 0] == 1).mean()
    assert abs(turned - rate) < 4 * math.sqrt(rate * (1 - rate) / n)


def test_more_noise_turns_the_same_examples_and_more():
    turned = [
        relabel(make_labels(500), Relabel(noise=rate)).ranks[:, 0] == 1
        for rate in (0.1, 0.3)
    ]
    assert (turned[0] <= turned[1]).all() and turned[0].sum() < turned[1].sum()


def test_it_depends_on_the_index_not_on_the_place():
    labels = make_labels(100)
    order = np.random.default_rng(0).permutation(100)
    how = Relabel(noise=0.3, noise_seed=5, bootstrap="poisson", bootstrap_seed=6)
    whole = relabel(labels, how)
    shuffled = relabel(labels._replace(ids=order), how)
    np.testing.assert_array_equal(shuffled.ranks, whole.ranks[order])
    np.testing.assert_array_equal(shuffled.weight, whole.weight[order])


def test_seeds_are_independent_of_one_another():
    ids = np.arange(20_000)
    a, b, c = uniform(ids, 0, 1), uniform(ids, 1, 1), uniform(ids, 0, 2)
    for x, y in ((a, b), (a, c), (a[:-1], a[1:])):
        assert abs(np.corrcoef(x, y)[0, 1]) < 4 / math.sqrt(len(x))
    assert (
        abs(a.mean() - 0.5) < 4 / math.sqrt(12 * len(a)) and 0 <= a.min() < a.max() < 1
    )


def test_bootstrap_weights_are_poisson_of_one():
    n = 40_000
    found = relabel(make_labels(n), Relabel(bootstrap="poisson"))
    times = found.weight / 3.0
    assert found.ranks.tolist() == make_labels(n).ranks.tolist()
    for k in range(5):
        want = math.exp(-1) / math.factorial(k)
        assert abs((times == k).mean() - want) < 4 * math.sqrt(want * (1 - want) / n)
    assert abs(times.mean() - 1) < 4 / math.sqrt(n)


def test_padding_keeps_no_weight():
    labels = make_labels(3)._replace(
        ids=np.array([-1, 0, -1]), weight=np.array([0, 1, 0], np.float32)
    )
    found = relabel(labels, Relabel(noise=0.5, bootstrap="poisson"))
    assert found.weight[0] == found.weight[2] == 0
