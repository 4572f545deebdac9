"""Averages of weights: arithmetic, the check, and run directories that can be used."""

import json

import jax
import numpy as np
import pytest
from tiny import NO_EVAL, arrays, train
from variants import changed, stack, vary

import rm_jax as package
from rm_jax import averaging
from rm_jax.averaging import Line, Model, average_runs, combine, connectivity
from rm_jax.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("one_device")


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


def measured(accuracy):
    return lambda params: (accuracy(float(np.asarray(params["w"])[0])), 100)


def test_a_barrier_is_found():
    # Good at 0 and at 4, chance between them.
    found = connectivity(
        [model("a", 0.0), model("b", 4.0), model("c", 0.1)],
        measured(lambda x: 0.9 if x < 0.5 or x == 4 else 0.5),
        tolerance=0.005,
    )
    assert [(line.a, line.b) for line in found.broken()] == [("a", "b"), ("b", "c")]
    assert found.lines[0].gap() == pytest.approx(-0.4)
    assert not found.holds() and found.average == 0.5
    assert found.members == pytest.approx(0.9)
    text = "\n".join(averaging.table_lines(found))
    assert text.count("BROKEN") == 2 and "WARNING linear mode connectivity" in text
    assert "2 of 3 lines lose accuracy" in text


@pytest.mark.parametrize("slope", [0.0, 0.02, -0.02])
def test_a_straight_line_holds(slope):
    found = connectivity(
        [model("a", 0.0), model("b", 1.0)],
        measured(lambda x: 0.7 + slope * x),
        tolerance=1e-9,
    )
    assert found.holds() and found.lines[0].gap() == pytest.approx(0)
    assert "WARNING" not in "\n".join(averaging.table_lines(found))


def test_the_tolerance_is_what_may_be_lost():
    accuracy = {0.0: 0.8, 0.25: 0.79, 0.5: 0.796, 0.75: 0.8, 1.0: 0.8}
    line = Line("a", "b", accuracy)
    assert line.gap() == pytest.approx(-0.01)
    values = {"lines": [line], "average": 0.8, "members": 0.8, "pairs": 9}
    assert averaging.Connectivity(**values, tolerance=0.02).holds()
    tight = averaging.Connectivity(**values, tolerance=0.005)
    assert not tight.holds() and tight.to_json()["lines"][0]["holds"] is False
    worse = averaging.Connectivity(**values | {"average": 0.7}, tolerance=0.02)
    assert not worse.holds() and not worse.broken()


@pytest.fixture(scope="module")
def runs(make, tmp_path_factory):
    """A run with an average of its own, and one near it."""
    folder = tmp_path_factory.mktemp("runs")
    train(make(train__keep_best=0, train__duration="4 steps"), folder / "a")
    return [folder / "a", vary(folder / "a", folder / "b", 1, scale=0.01)]


def ema(run):
    return Checkpoints(f"{run}/checkpoints").restore_part("ema")[0]


def test_an_average_is_a_run(runs, rm_jax, make, tmp_path):
    to, data = tmp_path / "mean", make().data.eval.valid
    code, said, err = rm_jax("average", *runs, "--to", to)
    assert code == 0, err
    assert "accuracy on 12 pairs" in said and "mean of all weights" in said
    lmc = json.loads((to / "lmc.json").read_text())
    assert lmc["data"] == f"valid of {runs[0]}" and len(lmc["lines"]) == 1
    assert list(lmc["lines"][0]["accuracy"]) == ["0", "0.25", "0.5", "0.75", "1"]
    scorer = package.load(str(to))
    want = combine([ema(run) for run in runs])
    jax.tree.map(np.testing.assert_array_equal, scorer.params, want)
    sources = json.loads((to / "run.json").read_text())["average_of"]
    assert [s["run"] for s in sources] == list(map(str, runs)) and scorer.step == 0
    out = tmp_path / "out"
    code, _, err = rm_jax("eval", "--checkpoint", to, "--data", data, "--out", out)
    assert code == 0, err
    (values,) = json.loads((out / "evals.json").read_text())["sets"].values()
    assert values["accuracy"] == pytest.approx(lmc["average"])
    config = make(**NO_EVAL, model__init=str(to), train__duration="1 steps")
    train(config, tmp_path / "next")


def test_members_of_one_run_are_averaged(runs, tmp_path):
    run = stack(runs, "none", tmp_path / "stacked")
    own = average_runs([str(run)], str(tmp_path / "a"))
    two = average_runs([str(r) for r in runs], str(tmp_path / "b"))
    assert own._replace(lines=[]) == two._replace(lines=[])
    assert own.lines[0].a == f"{run} step 4 (last sound) member 0"
    assert own.lines[0].accuracy == two.lines[0].accuracy
    assert arrays(tmp_path / "a", 0) == arrays(tmp_path / "b", 0)


def test_the_data_can_be_another(runs, make, tmp_path):
    data = make().data.eval.valid
    names = [str(run) for run in runs]
    found = average_runs(names, str(tmp_path / "a"), data=data, limit=5)
    assert found.pairs == 5


def test_models_of_another_kind_are_refused(runs, make, tmp_path):
    wider = make(**NO_EVAL, train__duration="1 steps", model__d_ff=24)
    train(wider, tmp_path / "wide")
    names = [str(runs[0]), str(tmp_path / "wide")]
    with pytest.raises(ValueError, match="cannot be averaged, .* arch.d_ff: 16 and 24"):
        average_runs(names, str(tmp_path / "to"))
    assert not (tmp_path / "to").exists()
    with pytest.raises(ValueError, match="is one model: give several"):
        average_runs(names[:1], str(tmp_path / "to"))
    a, b = package.load(names[0]), package.load(names[0])
    b.contract = b.contract.__class__(
        **{**vars(b.contract), "max_length": 99, "tokenizer_sha": "0"}
    )
    with pytest.raises(
        ValueError, match="contract.max_length: 128 and 99; contract.tokenizer_sha: '"
    ):
        averaging.check_same(a, b)


def test_dropout_may_differ(runs):
    a, b = package.load(str(runs[0])), package.load(str(runs[0]))
    for scorer, rate in ((a, 0.1), (b, 0.3)):
        own = {"dropout": rate, "head_knobs": (("dropout", rate), ("hidden", (4,)))}
        scorer.arch = scorer.arch.__class__(**{**vars(scorer.arch), **own})
    averaging.check_same(a, b)


def test_a_run_without_eval_set_needs_data(runs, tmp_path):
    def none(config):
        with config.unlocked():
            config.data.eval = {}
        config.train.keep_best = 0

    run = changed(runs[0], tmp_path / "run", none)
    with pytest.raises(ValueError, match="no eval set to measure on: give --data"):
        average_runs([str(run), str(run)], str(tmp_path / "to"))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--tolerance", "2"], "--tolerance 2.0: want 0 to 1"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_a_wrong_command_line_is_one_line(runs, rm_jax, tmp_path, words, why):
    code, _, err = rm_jax("average", *runs, "--to", tmp_path / "to", *words)
    assert code == 1 and why in err and not (tmp_path / "to").exists()
