import itertools
import math

import numpy as np
import pytest
from scipy.integrate import quad

from rm_jax.evals import evaluate
from rm_jax.evals.best_of_n import best_of_n, chances, expected_gold, kl, sizes


def of_all_choices(scores, gold, n):
    """Every choice of n responses, the best of it by score; equal ones share."""
    worth = []
    for chosen in itertools.combinations(range(len(scores)), n):
        top = max(scores[i] for i in chosen)
        worth.append(np.mean([gold[i] for i in chosen if scores[i] == top]))
    return np.mean(worth)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_is_the_mean_over_all_choices(n):
    rng = np.random.default_rng(n)
    scores, gold = rng.normal(size=6), rng.normal(size=6)
    want = of_all_choices(scores, gold, n)
    assert expected_gold(scores, gold, n) == pytest.approx(want)


def test_equal_scores_are_as_likely_each():
    scores, gold = np.array([1.0, 2.0, 2.0]), np.array([0.0, 3.0, 9.0])
    assert expected_gold(scores, gold, 3) == pytest.approx(6)
    assert expected_gold(scores, gold, 2) == pytest.approx(6)
    back = expected_gold(scores[::-1], gold[::-1], 2)
    assert back == pytest.approx(6)


def test_large_k_neither_overflows_nor_forgets_mass():
    found = chances(1024, 256)
    assert found.sum() == pytest.approx(1)
    assert not found[:255].any()
    assert found[-1] == pytest.approx(256 / 1024)  # the top one is among them


@pytest.mark.parametrize("n", [0, 4])
def test_n_is_of_the_responses(n):
    with pytest.raises(ValueError, match="want 1 <= n <= k"):
        chances(3, n)


def test_kl_is_that_of_the_maximum():
    # Density n u^(n-1) of the highest of n uniform numbers, against the uniform one.
    density = lambda u: 5 * u**4
    want, _ = quad(lambda u: density(u) * math.log(density(u)), 0, 1)
    assert kl(5) == pytest.approx(want)
    assert kl(1) == 0


def test_examples_with_fewer_responses_count_in_no_larger_n(make_table):
    nan = np.nan
    table = make_table(
        [[1.0, 2.0, 3.0], [2.0, 1.0, nan]],
        [[2, 1, 0], [0, 1, -1]],
        gold=[[1.0, 2.0, 6.0], [5.0, 1.0, nan]],
        weight=[1.0, 3.0],
    )
    assert best_of_n(table, 2).mean() == pytest.approx(
        (1 * (6 * 2 / 3 + 2 / 3) + 3 * 5) / 4
    )
    assert best_of_n(table, 3).mean() == 6
    assert sizes(table) == []


def test_curve_is_among_the_figures(make_table):
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(20, 16))
    table = make_table(gold, np.argsort(np.argsort(-gold, axis=1), axis=1), gold=gold)
    assert sizes(table) == [1, 4, 16]
    found = evaluate(table, seed=0)
    assert found["best_of_1/gold"] == pytest.approx(gold.mean())
    assert found["best_of_16/gold"] == pytest.approx(gold.max(axis=1).mean())
    members = np.stack([gold, -gold])
    found = evaluate(table._replace(members=members, scores=0 * gold), seed=0)
    lowest = gold.min(axis=1).mean()
    highest = gold.max(axis=1).mean()
    assert found["members/best_of_16/gold"] == pytest.approx((lowest + highest) / 2)
    # The mean of opposite members is the same everywhere: any response.
    assert found["reducer/mean/best_of_16/gold"] == pytest.approx(gold.mean())
    # The least of x and -x is -|x|.
    own = [g[np.abs(g).argmin()] for g in gold]
    assert found["reducer/min/best_of_16/gold"] == pytest.approx(np.mean(own))
