"""Averages of weights: arithmetic, the check, and run directories that can be used."""

import json

import jax
import numpy as np
import pytest
from tiny import NO_EVAL, arrays, train
from variants import changed, stack, vary

import rm_jax as package
from rm_jax import averaging
from rm_jax.averaging import average_runs
from rm_jax.checkpoint import Checkpoints
from rm_jax.connectivity import combine

pytestmark = pytest.mark.usefixtures("one_device")


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
    line = lmc["lines"][0]
    assert line["low"] < line["gap"] < line["high"] and line["n"] == lmc["n"] == 12
    assert line["verdict"] == lmc["verdict"] == "undecided"  # 12 pairs decide nothing
    assert "undecided on 12 pairs" in said and "WARNING" not in said
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
    config = ["--config", to / "config.json"]
    code, _, err = rm_jax("train", *config, "--workdir", to)
    assert code == 1 and "holds an average of models" in err and "model.init=" in err


def test_members_of_one_run_are_averaged(runs, tmp_path):
    run = stack(runs, "none", tmp_path / "stacked")
    own = average_runs([str(run)], str(tmp_path / "a"))
    two = average_runs([str(r) for r in runs], str(tmp_path / "b"))
    assert own._replace(lines=[]) == two._replace(lines=[])
    assert own.lines[0].a == f"{run} step 4 (last sound) member 0"
    assert own.lines[0].accuracy == two.lines[0].accuracy
    assert arrays(tmp_path / "a", 0) == arrays(tmp_path / "b", 0)


def test_heads_on_one_trunk_have_no_line_to_check(runs, rm_jax, tmp_path):
    run = stack(runs, "trunk", tmp_path / "stacked")
    code, said, err = rm_jax("average", run, "--to", tmp_path / "mean")
    assert code == 0, err
    assert "linear heads on one trunk" in said and "BROKEN" not in said
    lmc = json.loads((tmp_path / "mean/lmc.json").read_text())
    assert lmc["verdict"] == "exact" and lmc["lines"] == []
    data = tmp_path / "in.jsonl"
    row = {"id": "a", "prompt": "Which?", "responses": ["a cat", "two dogs"]}
    data.write_text(json.dumps(row))
    mean, members = package.load(str(tmp_path / "mean")), package.load(str(run))
    asked = row["prompt"], row["responses"]
    np.testing.assert_allclose(mean.score(*asked), members.score(*asked), rtol=1e-5)


def test_the_data_can_be_another(runs, make, tmp_path):
    data = make().data.eval.valid
    names = [str(run) for run in runs]
    found = average_runs(names, str(tmp_path / "a"), data=data, limit=5)
    assert found.n == 5


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
