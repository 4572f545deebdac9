"""Laplace and dropout: programs against the model itself, then whole evaluations."""

import json

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import NO_EVAL, train
from variants import changed

from rm_jax import doubt, models, sharding
from rm_jax.data import pack
from rm_jax.data.loader import Loader
from rm_jax.laplace import LAST
from rm_jax.models import heads
from rm_jax.models.arch import ArchConfig, frozen
from rm_jax.models.heads import HEADS
from rm_jax.serve import doubts
from rm_jax.serve.evaluation import evaluate_run
from rm_jax.serve.scorer import Scorer

pytestmark = pytest.mark.usefixtures("one_device")
SMALL = {"mlp": {"hidden": (5, 4)}, "bottleneck": {"latent": 4}}


def parts(name, **more):
    """Model, mesh, parameters and their shardings."""
    _, knobs = heads.choose({"name": name, "init": "normal"} | SMALL.get(name, {}), ())
    arch = ArchConfig(
        vocab_size=97, d_model=8, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=8,
        d_ff=8, head_init="normal", head=name, head_knobs=frozen(knobs), **more,
    )  # fmt: skip
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
    init, apply = models.functions(arch)
    rng = np.random.default_rng(0)
    draw = lambda x: jax.numpy.asarray(rng.standard_normal(x.shape), x.dtype) * 0.5
    params = jax.tree.map(draw, jax.eval_shape(init, jax.random.key(0)))
    one = jax.tree.map(lambda _: sharding.replicated(mesh), params)
    return apply, mesh, params, one


@pytest.fixture
def chunk(toy_set):
    data = toy_set([(5, (4, 7)), (3, (6, 2, 9))])
    (batch,) = Loader(data, pack.shapes((64,), 128, 8), 2).in_order()
    return batch.chunks[0]


@pytest.mark.parametrize("name", LAST)
def test_a_score_is_its_features_times_the_weights(name, chunk):
    apply, mesh, params, one = parts(name)
    features = doubt.make_features(apply, mesh, one, LAST[name])(params, *chunk)
    weights = doubt.find(params["head"], LAST[name])
    want = apply(params, chunk[0], *chunk[1].ranks.shape, None).scores
    assert features.shape == (*want.shape, len(weights))
    np.testing.assert_allclose(features @ weights, want, rtol=1e-5, atol=1e-5)
    assert np.ptp(want) > 0.1


def test_other_heads_have_no_such_layer():
    """Sums over attributes, of other responses, steps or log p; with an intercept."""
    assert set(HEADS) - set(LAST) == {
        "attributes", "gated", "quantiles", "gaussian", "pair", "steps",
        "implicit", "affine",
    }  # fmt: skip


def test_draws_of_dropout_differ_and_repeat(chunk):
    apply, mesh, params, one = parts("linear", dropout=0.2)
    draw = lambda n, seed: np.asarray(
        doubt.make_dropout_score(apply, mesh, one, n, seed)(params, *chunk)
    )
    got = draw(64, 0)
    assert got.shape == (64, *chunk[1].ranks.shape)
    there = chunk[1].present > 0
    assert got[:, there].std(0).min() > 1e-3
    np.testing.assert_array_equal(draw(64, 0), got)
    assert (draw(64, 1)[:, there] != got[:, there]).any()
    plain = np.asarray(apply(params, chunk[0], *there.shape, None).scores)
    error = (got.mean(0) - plain)[there] / (got.std(0)[there] / 8)
    assert np.abs(error).mean() < 4  # the mean is near the model without dropout


def test_without_dropout_draws_are_the_model(chunk):
    apply, mesh, params, one = parts("odin")
    program = doubt.make_dropout_score(apply, mesh, one, 2, 0)
    got = np.asarray(program(params, *chunk))
    want = np.asarray(apply(params, chunk[0], *chunk[1].ranks.shape, None).scores)
    # odin adds the length in training, but not here
    np.testing.assert_allclose(got, [want, want], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text", ["bayes", "dropout", "dropout:1", "dropout:x", "laplace:0", "laplace:"]
)
def test_what_it_may_be_is_said(text, tmp_path):
    with pytest.raises(ValueError, match=r"known: laplace, laplace:EX.*dropout:SAM"):
        evaluate_run("nowhere", "jsonl:x", str(tmp_path / "o"), uncertainty=text)


@pytest.fixture(scope="module")
def run(make, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train(make(**NO_EVAL, train__duration="4 steps"), folder)
    return folder


def evaluate(rm_jax, run, make, out, *words):
    data = make().data.eval.valid
    words = ["--checkpoint", run, "--data", data, "--out", out, *words]
    code, said, err = rm_jax("eval", *words)
    assert code == 0, err
    (values,) = json.loads((out / "evals.json").read_text())["sets"].values()
    (file,) = (out / "predictions").iterdir()
    return values, pq.read_table(file).to_pylist(), said + err


def test_laplace_from_the_command_line(rm_jax, run, make, tmp_path):
    plain, _, _ = evaluate(rm_jax, run, make, tmp_path / "plain")
    asked = "--uncertainty", "laplace"
    values, rows, said = evaluate(rm_jax, run, make, tmp_path / "all", *asked)
    assert "features of 77 training examples" in said and "AUROC" in said
    assert values["accuracy"] == plain["accuracy"] and values["nll"] == plain["nll"]
    assert values["laplace/prior_precision"] > 0
    assert values["uncertainty/margin_std"] > 0 and values["uncertainty/nll"] > 0
    assert "members/accuracy" not in values
    # A part of the training set stands for all of it.
    said, choice = [], doubts.parse("laplace:40")
    ways = doubts.prepare(Scorer(str(run)), choice, said.append)
    assert "laplace: features of 40 training examples" in said
    whole = values["laplace/log_evidence"]
    assert ways.figures["laplace/log_evidence"] == pytest.approx(whole, rel=0.1)
    first = np.array([row["covariance"] for row in rows[:2]])
    np.testing.assert_allclose(first, first.T, rtol=1e-5)
    assert np.linalg.eigvalsh(first).min() >= -1e-9 and first[0, 0] > 0


def test_dropout_from_the_command_line(rm_jax, run, make, tmp_path):
    words = "--uncertainty", "dropout:3", "--reducer", "mean_minus_std"
    values, rows, _ = evaluate(rm_jax, run, make, tmp_path / "o", *words)
    assert len(rows[0]["members"]) == 3 and np.std(rows[0]["members"]) > 0
    for row in rows:
        want = np.mean(row["members"]) - np.std(row["members"])
        assert row["score"] == pytest.approx(want, abs=1e-5)
    assert values["reducer/mean_minus_std/nll"] == pytest.approx(values["nll"])
    assert values["swap"]["flipped_share"] == 0 and not [
        alarm for alarm in values["alarms"] if "reverse" in alarm
    ]
    info = json.loads((tmp_path / "o" / "run.json").read_text())
    assert info["uncertainty"] == "dropout:3" and info["reducer"] == "mean_minus_std:1"


def test_what_a_model_cannot_do_is_refused(run, make, tmp_path):
    def asked(text, path=run, **more):
        out, data = str(tmp_path / "o"), make().data.eval.valid
        evaluate_run(str(path), data, out, uncertainty=text, **more)

    with pytest.raises(ValueError, match="an epoch of the training set has 77 ex"):
        asked("laplace:78")
    with pytest.raises(ValueError, match="--reducer min: --uncertainty laplace gives"):
        asked("laplace", reducer="min")
    model = Scorer(str(run))
    model.arch = ArchConfig(**{**vars(model.arch), "dropout": 0.0})
    with pytest.raises(
        ValueError, match="trained without any dropout, .*config.model.dropout"
    ):
        doubts.prepare(model, doubts.parse("dropout:2"), print)
    model.arch = ArchConfig(**{**vars(model.arch), "head": "pair"})
    with pytest.raises(ValueError, match="head 'pair' is not linear.*known are"):
        doubts.prepare(model, doubts.parse("laplace"), print)


def test_another_loss_is_warned_of(run, tmp_path):
    def hinge(config):
        with config.unlocked():
            config.loss = {"name": "hinge"}
            config.loss.regularizers = {}

    model = Scorer(str(changed(run, tmp_path / "run", hinge)))
    said = []
    doubts.prepare(model, doubts.parse("laplace:8"), said.append)
    assert "was trained with loss hinge" in said[0]
