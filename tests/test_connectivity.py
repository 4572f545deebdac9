"""Whether weights average: arithmetic, verdicts with their intervals, false alarms."""

import json
import math

import numpy as np
import pytest

from rm_jax import connectivity as module
from rm_jax.connectivity import Connectivity, Gap, Line, Model, combine, connectivity
from rm_jax.evals.intervals import Sample, together

N = 2000


def test_combine_by_hand():
    a = {"w": np.array([1.0, 3.0], np.float32), "h": {"b": np.float32([2.0])}}
    b = {"w": np.array([3.0, 3.0], np.float32), "h": {"b": np.float32([0.0])}}
    got = combine([a, b])
    np.testing.assert_array_equal(got["w"], [2, 3])
    np.testing.assert_array_equal(got["h"]["b"], [1])
    np.testing.assert_array_equal(combine([a, b], [0.75, 0.25])["w"], [1.5, 3])
    assert got["w"].dtype == np.float32


def test_the_average_of_equal_weights_is_themselves():
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    for n in (1, 2, 3, 7):
        np.testing.assert_array_equal(combine([x] * n), x)


def model(name, x):
    return Model(name, {"w": np.array([x], np.float32)})


def sample(values):
    return Sample(values, np.ones(len(values)), np.arange(len(values)))


def measured(accuracy, n=N):
    """Of the parameter w: pairs of which the first are right, the others wrong."""
    right = lambda x: (np.arange(n) < round(accuracy(x) * n)).astype(float)
    return lambda params: sample(right(float(np.asarray(params["w"])[0])))


def test_a_barrier_is_found():
    # Good at 0 and at 4, chance between them.
    found = connectivity(
        [model("a", 0.0), model("b", 4.0), model("c", 0.1)],
        measured(lambda x: 0.9 if x < 0.5 or x == 4 else 0.5),
        tolerance=0.005,
    )
    assert [(line.a, line.b) for line in found.broken()] == [("a", "b"), ("b", "c")]
    least = found.lines[0].least
    assert least.gap == pytest.approx(-0.4) and least.low < -0.4 < least.high < -0.3
    assert found.verdict() == "BROKEN" and found.average == 0.5 and found.n == N
    assert found.members == pytest.approx(0.9)
    assert found.of_average.gap == pytest.approx(-0.4)
    text = "\n".join(module.table_lines(found))
    assert text.count("BROKEN") == 3  # two lines and the average
    assert "WARNING linear mode connectivity does not hold: 2 of 3 lines" in text
    said = json.loads(json.dumps(found.to_json()))
    line = said["lines"][0]
    assert line["verdict"] == said["verdict"] == "BROKEN" and line["n"] == said["n"]
    assert [line[k] for k in ("gap", "low", "high")] == pytest.approx(list(least))


def test_a_loss_on_few_pairs_decides_nothing():
    # Two pairs of 40 are lost in the middle: .05, ten times the tolerance.
    found = connectivity(
        [model("a", 0.0), model("b", 1.0)],
        measured(lambda x: 0.9 if x in (0, 1) else 0.85, 40),
        tolerance=0.005,
    )
    assert found.lines[0].least.gap == pytest.approx(-0.05)
    assert found.verdict() == "undecided" and not found.broken()
    text = "\n".join(module.table_lines(found))
    assert "undecided on 40 pairs" in text and "WARNING" not in text


@pytest.mark.parametrize("slope", [0.0, 0.02, -0.02])
def test_a_straight_line_holds(slope):
    found = connectivity(
        [model("a", 0.0), model("b", 1.0)],
        measured(lambda x: 0.7 + slope * x),
        tolerance=0.02,
    )
    assert found.verdict() == "holds" and found.lines[0].least.gap == pytest.approx(0)
    text = "\n".join(module.table_lines(found))
    assert "WARNING" not in text and "undecided" not in text


def test_the_same_models_on_few_pairs_are_undecided():
    # Nothing changed on 10 prompts: 1 - .025^(1/10) = .3085 of others may.
    found = connectivity([model("a", 0.0)] * 2, measured(lambda x: 0.5, 10), 0.005)
    assert tuple(found.lines[0].least) == pytest.approx((0, -0.3085, 0.3085), abs=1e-4)
    assert found.verdict() == "undecided"


@pytest.mark.parametrize(
    ("low", "high", "tolerance", "verdict"),
    [
        (-0.02, -0.01, 0.005, "BROKEN"),
        (-0.02, -0.01, 0.015, "undecided"),
        (-0.02, -0.01, 0.03, "holds"),
        (math.nan, math.nan, 0.03, "undecided"),
    ],
)
def test_the_tolerance_is_what_may_be_lost(low, high, tolerance, verdict):
    assert Gap(-0.015, low, high).verdict(tolerance) == verdict
    lost, sure = Gap(-0.015, low, high), Gap(0.0, -0.001, 0.001)
    for of_line, average in ((lost, sure), (sure, lost)):
        line = Line("a", "b", dict.fromkeys((0.0, 0.25, 0.5, 0.75, 1.0), 0.8), of_line)
        found = Connectivity([line], 0.8, 0.8, average, 9, tolerance)
        assert found.verdict() == found.to_json()["verdict"] == verdict
        json.dumps(found.to_json(), allow_nan=False)


def test_models_that_differ_in_a_linear_head_alone_have_no_line():
    asked = []

    def measure(params):
        asked.append(float(params["head"][0]))
        return sample(np.ones(10))

    whole = lambda head, trunk: {"head": np.float32([head]), "w": np.float32([trunk])}
    heads = [Model("a", whole(0.0, 1.0)), Model("b", whole(1.0, 1.0))]
    found = connectivity(heads, measure, 0.005, linear_head=True)
    assert found.verdict() == "exact" and asked == [0, 1, 0.5]
    text = "\n".join(module.table_lines(found))
    assert "the mean of the weights scores the mean" in text and "λ =" not in text
    assert connectivity(heads, measure, 0.005, linear_head=False).lines
    apart = [heads[0], Model("b", whole(1.0, 2.0))]
    assert connectivity(apart, measure, 0.005, linear_head=True).lines


@pytest.mark.parametrize("n", [40, 500])
def test_models_that_average_are_seldom_broken(n):
    # Scores on one trunk: those of the mean of two heads are the mean of two scores.
    rng, alarms, naive = np.random.default_rng(0), 0, 0
    models = [
        Model("a", {"w": np.float32([1, 0])}),
        Model("b", {"w": np.float32([0, 1])}),
    ]
    for _ in range(40):
        scores = rng.normal(0.5, 1, n) + rng.normal(0, 0.3, (2, n))
        credit = lambda p, scores=scores: sample((p["w"] @ scores > 0).astype(float))
        found = connectivity(models, credit, 0.005)
        alarms += found.verdict() == "BROKEN"
        naive += found.lines[0].least.gap < -0.005
    assert alarms <= 2 and naive >= 6  # what the gap alone would say


def test_intervals_that_hold_together_cover_95_percent():
    # Five figures of 300 prompts with two pairs each, all of mean 0.
    rng, draws, held, alone = np.random.default_rng(0), 150, 0, 0
    clusters = np.repeat(np.arange(300), 2)
    for seed in range(draws):
        x = rng.choice([-1.0, 0, 1], (5, 300), p=[0.1, 0.8, 0.1]).repeat(2, axis=1)
        samples = {str(i): Sample(v, np.ones(600), clusters) for i, v in enumerate(x)}
        found = np.array(list(together(samples, seed, draws=200).values()))
        held += (found[:, 0] <= 0).all() and (found[:, 1] >= 0).all()
        means, error = x.mean(axis=1), 1.96 * math.sqrt(0.2 / 300)
        alone += (np.abs(means) <= error).all()
    assert 0.9 < held / draws < 0.99 and alone / draws < 0.88


def test_intervals_together_of_no_prompts_are_none():
    one = Sample(np.ones(2), np.ones(2), np.zeros(2, int))
    found = together({"one": one, "more": sample(np.ones(5))}, seed=0)
    assert all(map(math.isnan, found["one"]))
    assert found["more"] == pytest.approx((0.025**0.2, 2 - 0.025**0.2))
    assert all(map(math.isnan, together({"one": one}, seed=0)["one"]))
