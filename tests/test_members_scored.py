"""Members from the checkpoint to scores, evaluations and lines of a file."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import NO_EVAL, WORLD, train
from variants import changed, stack, together, vary

import rm_jax as package
from rm_jax.data.schema import record_from_dict, record_to_dict
from rm_jax.data.world import make_world
from rm_jax.evals.reducers import REDUCERS, reduce
from rm_jax.serve.evaluation import evaluate_run

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def runs(make, tmp_path_factory):
    """Three runs of one architecture with other parameters."""
    folder = tmp_path_factory.mktemp("runs")
    train(make(**NO_EVAL, train__duration="2 steps"), folder / "0")
    return [folder / "0", *(vary(folder / "0", folder / f"{i}", i) for i in (1, 2))]


@pytest.fixture(scope="module")
def ensemble(runs, tmp_path_factory):
    return stack(runs, "none", tmp_path_factory.mktemp("stacked") / "run")


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """Twelve pairs of the world, the fourth with a third response."""
    rows = [record_to_dict(r) for r in make_world(WORLD).records("valid")]
    rows[3]["responses"].append(rows[4]["responses"][0])
    rows[3] = {k: rows[3][k] for k in ("id", "prompt", "responses")} | {
        "ranks": [0, 1, 2]
    }
    path = tmp_path_factory.mktemp("rows") / "valid.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def records(path):
    return [record_from_dict(json.loads(line)) for line in path.open()]


def spread(members):
    """The least std over members of any response."""
    return np.std(members[:, ~np.isnan(members[0])], axis=0).min()


def test_members_are_the_models_they_were_made_of(runs, ensemble, valid):
    each = [package.load(str(run)).score_records(records(valid)) for run in runs]
    model = package.load(str(ensemble))
    got = model.score_members(records(valid))
    assert got.shape == (3, 12, 3) and spread(got) > 1e-3
    np.testing.assert_allclose(got, each, rtol=1e-4, atol=1e-5)
    assert model.reducer == "mean" and model.members.count == 3
    np.testing.assert_allclose(model.score_records(records(valid)), np.mean(got, 0))


def test_a_shared_trunk_is_the_first_ones(runs, valid, tmp_path):
    model = package.load(str(stack(runs, "trunk", tmp_path / "run")))
    got = model.score_members(records(valid))
    alone = package.load(str(runs[0])).score_records(records(valid))
    np.testing.assert_allclose(got[0], alone, rtol=1e-4, atol=1e-5)
    assert spread(got) > 1e-3


def test_a_run_that_trained_with_others_is_its_own_part(runs, valid, tmp_path):
    for path, run in zip(together(runs, tmp_path), runs, strict=True):
        model = package.load(str(path))
        want = package.load(str(run)).score_records(records(valid))
        got = model.score_records(records(valid))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        assert model.members is None


@pytest.mark.parametrize("text", REDUCERS)
def test_every_reducer_scores_and_warns(ensemble, valid, capsys, text):
    model = package.load(str(ensemble), reducer=text)
    said = capsys.readouterr().err
    needs = REDUCERS[text].needs_centred
    assert said.count("config.loss.regularizers.center") == needs
    table = model.score_table(records(valid))
    np.testing.assert_array_equal(table.scores, reduce(text, table.members))
    missing = np.arange(3) >= [[3] if row == 3 else [2] for row in range(12)]
    assert (np.isnan(table.members) == missing).all()
    assert (np.isnan(table.scores) == missing).all()


def test_a_run_that_was_centred_is_not_warned_of(runs, ensemble, tmp_path, capsys):
    def centre(config):
        with config.unlocked():
            config.loss.regularizers = {"center": {"weight": 0.01}}

    changed(ensemble, tmp_path / "run", centre)
    package.load(str(tmp_path / "run"), reducer="min")
    package.load(str(runs[0]), reducer="min")  # a single model has no levels
    assert "WARNING" not in capsys.readouterr().err


def test_a_penalty_of_weight_0_centres_nothing(ensemble, tmp_path, capsys):
    def centre(config):
        with config.unlocked():
            config.loss.regularizers = {"center": {"weight": 0.0}}

    changed(ensemble, tmp_path / "run", centre)
    package.load(str(tmp_path / "run"), reducer="min")
    assert "config.loss.regularizers.center" in capsys.readouterr().err


def test_a_member_is_inspected_as_its_run(rm_jax, runs, ensemble, tmp_path):
    def count(config):
        with config.unlocked():
            config.members.count = 3

    ensemble = changed(ensemble, tmp_path / "run", count)
    of = lambda text: text.partition(" examples, ")[2]
    code, alone, _ = rm_jax("inspect", runs[1], "--step", 0)
    assert code == 0 and "scored: token" in alone
    code, out, _ = rm_jax("inspect", ensemble, "--step", 0, "--member", 1)
    assert code == 0 and ", member 1 of 3: " in out
    assert of(out) == of(alone)
    code, first, _ = rm_jax("inspect", ensemble, "--step", 0)
    assert code == 0 and of(first) != of(alone)
    code, _, err = rm_jax("inspect", ensemble, "--step", 0, "--member", 3)
    assert code == 1 and "--member 3" in err and "has 3 members" in err


def test_a_single_model_is_one_member(runs, valid):
    model = package.load(str(runs[0]), reducer="quantile:0.1")
    table = model.score_table(records(valid))
    assert table.members is None and model.members is None
    got = model.score_members(records(valid))
    np.testing.assert_array_equal(got, table.scores[None])


def test_an_unknown_reducer_fails_first(rm_jax, tmp_path):
    with pytest.raises(ValueError, match="known: .*'min'"):
        package.load(str(tmp_path / "nowhere"), reducer="mode")
    for verb in ("score", "eval"):
        code, _, said = rm_jax(verb, "--checkpoint", "nowhere", "--reducer", "min:2")
        assert code == 1 and "min has no knob" in said


def test_score_writes_the_members(rm_jax, ensemble, valid, tmp_path):
    out = tmp_path / "out.jsonl"
    words = ["--checkpoint", ensemble, "--input", valid, "--output", out]
    code, _, said = rm_jax("score", *words, "--reducer", "mean_minus_var:2")
    assert code == 0, said
    assert "WARNING: reducer mean_minus_var:2 compares the levels of the 3" in said
    lines = [json.loads(line) for line in out.open()]
    assert [len(line["scores"]) for line in lines] == [2, 2, 2, 3, *[2] * 8]
    for line in lines:
        members = np.array(line["members"], np.float32)
        want = reduce("mean_minus_var:2", members)
        np.testing.assert_allclose(line["scores"], want, rtol=1e-5, atol=1e-6)


def test_an_evaluation_compares_the_reducers(rm_jax, ensemble, valid, tmp_path):
    words = ["--checkpoint", ensemble, "--data", f"jsonl:{valid}", "--reducer", "min"]
    code, said, _ = rm_jax("eval", *words, "--out", tmp_path / "out")
    assert code == 0
    assert "AUROC" in said and "by reducer: mean 0." in said
    out = tmp_path / "out"
    (values,) = json.loads((out / "evals.json").read_text())["sets"].values()
    assert values["reducer/min/accuracy"] == values["accuracy"]
    assert values["swap"]["max_difference"] < 1e-4
    assert json.loads((out / "run.json").read_text())["reducer"] == "min"
    assert "mean_minus_std" in (out / "report.html").read_text()
    (file,) = (out / "predictions").iterdir()
    row = pq.read_table(file).to_pylist()[0]
    assert row["score"] == min(row["members"]) and len(row["members"]) == 3


def test_members_need_no_other_uncertainty(ensemble, valid, tmp_path):
    for asked in ("laplace", "dropout:4"):
        with pytest.raises(ValueError, match="has 3 members, which say"):
            evaluate_run(
                str(ensemble), f"jsonl:{valid}", str(tmp_path / "o"), uncertainty=asked
            )
