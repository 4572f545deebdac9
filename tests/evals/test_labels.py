import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from rm_jax.evals import evaluate
from rm_jax.evals.labels import against_gold, by_strength
from rm_jax.evals.table import pairs


def test_accuracy_of_each_strength_by_hand(make_table):
    table = make_table(
        [[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 0.0], [5.0, 0.0]],
        [[0, 1]] * 4 + [[0, 0]],
        strength=[1.0, 1.0, 2.0, 2.0, 1.0],
        weight=[1.0, 3.0, 1.0, 1.0, 1.0],
    )
    assert by_strength(table, pairs(table)) == {
        "strength/1/accuracy": pytest.approx(1 / 4),
        "strength/1/n_pairs": 2,  # the tie is none
        "strength/2/accuracy": pytest.approx(3 / 4),
        "strength/2/n_pairs": 2,
    }
    assert evaluate(table, seed=0)["strength/2/accuracy"] == pytest.approx(3 / 4)


@pytest.mark.parametrize("strength", [[np.nan] * 9, [2.0] * 9, np.arange(9) / 2])
def test_without_levels_there_is_no_figure(make_table, strength):
    table = make_table(np.ones((9, 2)), [[0, 1]] * 9, strength=strength)
    assert by_strength(table, pairs(table)) == {}


def test_labels_against_gold_by_hand(make_table):
    # Margins 4 3 2 1 0 of the label; gold is against the last and the second.
    table = make_table(
        [[4.0, 0.0], [3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 0.0]],
        [[0, 1]] * 5,
        gold=[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]],
    )
    assert against_gold(table, pairs(table)) == {
        "against_gold/rate": pytest.approx(2 / 5),
        "against_gold/auroc": pytest.approx((3 + 1) / 6),
        "against_gold/lowest_fifth": 1,
        "against_gold/highest_fifth": 0,
    }


def test_labels_against_gold_are_found_as_by_scipy(random_table):
    table = random_table(3, e=200, k=2)
    table = table._replace(soft=np.full(len(table.ids), np.nan))
    found = pairs(table)
    here = ~found.tie
    ahead = np.array(
        [
            table.gold[e, i] - table.gold[e, j]
            for e, i, j in zip(found.example, found.better, found.worse, strict=True)
        ]
    )
    delta, wrong = found.delta[here], ahead[here] < 0
    table = table._replace(weight=np.ones(len(table.ids)))
    want = mannwhitneyu(-delta[wrong], -delta[~wrong]).statistic
    want /= wrong.sum() * (~wrong).sum()
    got = against_gold(table, pairs(table))
    assert got["against_gold/auroc"] == pytest.approx(want)
    assert evaluate(table, seed=0)["against_gold/auroc"] == pytest.approx(want)


def test_labels_that_follow_gold_have_no_such_figures(make_table):
    table = make_table([[1.0, 0.0]] * 3, [[0, 1]] * 3, gold=[[1.0, 0.0]] * 3)
    assert against_gold(table, pairs(table)) == {}
