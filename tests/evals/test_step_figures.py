"""Figures of steps by hand and against sklearn-like definitions."""

import numpy as np
import pytest

from rm_jax.evals import concat, evaluate
from rm_jax.evals.predictions import to_arrow
from rm_jax.evals.score import Scored, put_steps
from rm_jax.evals.steps import StepTable, figures, samples
from rm_jax.evals.table import take
from rm_jax.types import Labels

NAN = np.nan


@pytest.fixture
def steps():
    """Three examples: an error found, an error missed, one without an error."""
    scores = [[[2.0, -1.0, 3.0], [1.0, 0.0, NAN]], [[1.0, 2.0, -1.0], [NAN] * 3],
              [[1.0, 0.5, NAN], [NAN] * 3]]  # fmt: skip
    labels = [[[1, 0, NAN], [1, 1, NAN]], [[1, 0, 0], [NAN] * 3],
              [[1, 0.5, NAN], [NAN] * 3]]  # fmt: skip
    return StepTable(np.array(scores), np.array(labels))


def test_figures_by_hand(steps):
    weight, prompts = np.array([1.0, 2.0, 1.0]), np.array([5, 6, 7])
    found = samples(steps, weight, prompts)
    right = found["step_accuracy"]
    np.testing.assert_array_equal(right.values, [1, 1, 1, 0.5, 1, 0, 1, 1, 1])
    np.testing.assert_array_equal(right.weights, [1, 1, 1, 1, 2, 2, 2, 1, 1])
    np.testing.assert_array_equal(right.clusters, [5, 5, 5, 5, 6, 6, 6, 7, 7])
    first = found["first_error_accuracy"]
    np.testing.assert_array_equal(first.values, [1, 1, 0, 1])
    got = figures(steps, weight)
    assert got["n_steps"] == 9 and got["step_right_share"] == pytest.approx(6 / 9)
    good, bad = [2, 1, 0, 1, 1, 0.5], [-1, 2, -1]
    pairs = [(g > b) + 0.5 * (g == b) for g in good for b in bad]
    assert got["step_auroc"] == pytest.approx(np.mean(pairs))


def test_weight_0_counts_in_nothing(steps):
    weight = np.array([0.0, 1.0, 0.0])
    assert figures(steps, weight)["n_steps"] == 3
    assert len(samples(steps, weight, np.arange(3))["step_accuracy"].values) == 3


def test_only_right_steps_have_no_auroc(steps):
    ones = steps._replace(labels=np.where(np.isnan(steps.labels), NAN, 1.0))
    assert np.isnan(figures(ones, np.ones(3))["step_auroc"])


def test_a_set_of_steps_alone_can_be_evaluated(make_table, steps):
    table = make_table(np.zeros((3, 2)), np.full((3, 2), -1))
    with pytest.raises(ValueError, match="labelled step that the model scores"):
        evaluate(table, seed=0)
    found = evaluate(table._replace(steps=steps), seed=0)
    assert found["step_accuracy"] == pytest.approx(7.5 / 9)
    low, high = found["step_accuracy_low"], found["step_accuracy_high"]
    assert low <= found["step_accuracy"] <= high
    assert "nll" not in found and found["n_pairs"] == 0
    assert not np.isnan(list(found.values())).any()


def test_steps_stand_beside_the_figures_of_pairs(make_table, steps):
    table = make_table(np.arange(6.0).reshape(3, 2), [[1, 0]] * 3)
    plain, both = (evaluate(t, seed=0) for t in (table, table._replace(steps=steps)))
    own = {n for n in both if "step" in n or n.startswith("first_error")}
    assert {n: v for n, v in both.items() if n not in own} == plain and len(own) > 5


def test_tables_with_steps_are_cut_and_joined(make_table, steps):
    table = make_table(np.zeros((3, 2)), np.full((3, 2), -1))._replace(steps=steps)
    rows = np.array([True, False, True])
    np.testing.assert_array_equal(take(table, rows).steps.scores, steps.scores[rows])
    plain = make_table(np.zeros((1, 3)), np.full((1, 3), -1))
    joined = concat([plain, table])
    assert joined.steps.scores.shape == (4, 3, 3)
    np.testing.assert_array_equal(joined.steps.labels[1:, :2], steps.labels)
    assert np.isnan(joined.steps.labels[0]).all()
    assert concat([plain, plain]).steps is None


def test_predictions_hold_the_scores_of_steps(make_table, steps):
    table = make_table(np.zeros((3, 2)), np.full((3, 2), -1))._replace(steps=steps)
    arrow = to_arrow(table, ["p"] * 3, [["a", "b"]] * 3)
    want = [[2, -1, 3], [1, 0], [1, 2, -1], [], [1, 0.5], []]
    assert arrow["step_scores"].to_pylist() == want


def test_a_chunk_is_put_in_the_rows_of_its_examples():
    into = StepTable(*(np.full((3, 1, 2), NAN) for _ in range(2)))
    found = Scored(
        np.zeros((2, 1)),
        np.array([[[1.0, 2, 3]], [[4, 5, 6]]]),
        np.array([[[1.0, 1, 0]], [[1, 0, 0]]]),
    )
    one, many = np.zeros(2), np.zeros((2, 1))
    labels = Labels(
        ranks=many.astype(int), present=many.astype(int), soft=one, strength=one,
        weight=one, ratings=np.zeros((2, 1, 0)),
        steps=np.array([[[1.0, -1, -1]], [[0, -1, -1]]]), lengths=many.astype(int),
        ids=np.array([2, -1]), source=one.astype(int), reference_logp=many,
    )  # fmt: skip
    put_steps(into, found, labels)
    np.testing.assert_array_equal(into.scores[2], [[1, 2]])
    np.testing.assert_array_equal(into.labels[2], [[1, NAN]])
    assert np.isnan(into.scores[:2]).all()
