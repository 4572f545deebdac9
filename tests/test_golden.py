"""Run directories of earlier layouts load, score, go on and repeat: tests/golden."""

import io
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

import rm_jax
from rm_jax import config as config_module
from rm_jax import report, sharding
from rm_jax.checkpoint import Checkpoints
from rm_jax.report.diff import diff
from rm_jax.serve.evaluation import evaluate_run

RUNS = ("run",)
REAL_MESH = sharding.make_mesh


@pytest.fixture(params=RUNS)
def golden(root, request, tmp_path, monkeypatch):
    """A golden run; the working directory is that of its data."""
    one = lambda sizes, given=None: REAL_MESH(sizes, given or jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", one)
    monkeypatch.chdir(root / "tests" / "golden")
    monkeypatch.setenv("HOME", str(tmp_path))  # its token cache
    return root / "tests" / "golden" / request.param


def scores(path):
    rows = pq.read_table(path).to_pylist()
    return {(row["id"], row["response"]): row["score"] for row in rows}


def lines(run):
    return [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]


def train(config, workdir):
    config.data.cache_dir = str(workdir.parent / "tokens")
    return rm_jax.train(config, str(workdir), stream=io.StringIO())


def test_it_loads_and_is_reported(golden, tmp_path):
    config = config_module.validate(config_module.load(str(golden)))
    assert config.name == "golden" and config.batch.row_lengths == (64, 128)
    run = report.load_run(golden)
    assert run.eval_step == 6 and len(run.metrics) == 8
    assert run.predictions("valid").num_rows == 21
    assert [s["starts"][0]["step"] for s in run.info["sessions"]] == [0, 3]
    report.write_report(golden, str(tmp_path / "report.html"))
    assert "golden" in (tmp_path / "report.html").read_text()
    assert diff(str(golden), str(golden)).same


def test_it_scores_as_it_did(golden, tmp_path):
    found = evaluate_run(str(golden), "jsonl:rows.jsonl#valid", str(tmp_path / "out"))
    (name,) = os.listdir(tmp_path / "out" / "predictions")
    now = scores(tmp_path / "out" / "predictions" / name)
    then = scores(golden / "predictions" / "valid.parquet")
    assert now.keys() == then.keys() and np.ptp(list(then.values())) > 0.1
    for key, value in then.items():
        assert now[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
    recorded = json.loads((golden / "evals.json").read_text())["sets"]["valid"]
    assert found["accuracy"] == recorded["accuracy"]
    model = rm_jax.load(str(golden))
    row = json.loads(pathlib.Path("rows.jsonl").read_text().splitlines()[0])
    got = model.score(row["prompt"], row["responses"])
    assert got[0] > got[1] and got.shape == (3,)


def test_it_goes_on(golden, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(golden, workdir)
    config = config_module.load(str(workdir))
    config.train.duration = "7 steps"
    assert set(train(config, workdir)) == {"valid"}
    assert Checkpoints(str(workdir / "checkpoints")).steps() == [7]
    before, after = lines(golden), lines(workdir)
    assert after[: len(before)] == before and after[-1]["step"] == 7
    info = json.loads((workdir / "run.json").read_text())
    assert [s["starts"][0]["step"] for s in info["sessions"]] == [0, 3, 6]


def test_its_config_repeats_it(golden, tmp_path):
    config = config_module.load(str(golden / "config.json"))
    config.train.duration = "2 steps"  # its warm-up; then its rate is constant
    train(config, tmp_path / "run")
    first, want = lines(tmp_path / "run")[0], lines(golden)[0]
    shared = first.keys() & want.keys()
    assert {"step", "train/loss", "train/grad_norm"} <= shared
    for name in shared:
        assert first[name] == pytest.approx(want[name], rel=1e-4, abs=1e-6), name
