"""Runs that train together: each as if alone, stopped and continued the same."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import NO_EVAL, arrays, lines, train

import rm_jax
from rm_jax import together
from rm_jax.config import ConfigError
from rm_jax.losses import LOSSES, bradley_terry
from rm_jax.steplog import TrainingError
from rm_jax.train import train_together

pytestmark = pytest.mark.usefixtures("one_device")

PLAIN = {"model__dropout": 0.0, "train__keep_best": 1}
CHANGES = (
    {"optim__learning_rate": 3e-3, "init_seed": 1},
    {"data__label_noise": 0.25, "data_seed": 3},
)


@pytest.fixture(scope="module")
def both(make, tmp_path_factory):
    """Two runs that trained together, and the folder they are in."""
    folder = tmp_path_factory.mktemp("both")
    configs = [make(**PLAIN, **changes) for changes in CHANGES]
    workdirs = [str(folder / name) for name in "ab"]
    with open(folder / "log", "w") as stream:
        done = train_together(configs, workdirs, stream=stream)
    assert [set(own) for own in done] == [{"valid"}] * 2
    return folder


def close(a, b):
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            if isinstance(y[key], float):
                assert abs(x[key] - y[key]) <= 1e-5 * max(1, abs(y[key])), key
            else:
                assert x[key] == y[key], key


def test_each_reads_like_its_run_alone(both, make, tmp_path):
    for name, changes in zip("ab", CHANGES, strict=True):
        train(make(**PLAIN, **changes), tmp_path / name)
        close(lines(both / name), lines(tmp_path / name))
        alone = {p.name for p in (tmp_path / name).iterdir()}
        here = {p.name for p in (both / name).iterdir()}
        assert alone ^ here == {"checkpoints", "member.json"}
        found, want = (
            json.loads((folder / name / "evals.json").read_text())["sets"]["valid"]
            for folder in (both, tmp_path)
        )
        assert found["accuracy"] == want["accuracy"]
        assert abs(found["nll"] - want["nll"]) < 1e-5


def test_each_is_scored_from_its_own_directory(both):
    prompt, responses = "What is 2 + 2?", ["4", "5 or so"]
    a, b = (rm_jax.load(str(both / name)) for name in "ab")
    assert a.members is None and a.step == 8
    scores = [model.score(prompt, responses) for model in (a, b)]
    assert np.isfinite(scores).all() and not np.allclose(*scores)
    best = rm_jax.load(str(both / "a"), step="best")
    nll = {n["step"]: n["eval/valid/nll"] for n in lines(both / "a")
           if "eval/valid/nll" in n}  # fmt: skip
    assert best.step == min(nll, key=nll.get)


def test_a_folder_of_them_can_be_moved(both, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(both, moved)
    assert rm_jax.load(str(moved / "b")).score("What?", "4") == rm_jax.load(
        str(both / "b")
    ).score("What?", "4")


def test_after_a_stop_they_continue_to_the_same_bits(make, tmp_path, stop_after):
    configs = [make(**PLAIN | NO_EVAL, **c) for c in CHANGES]
    for name in ("straight", "stopped"):
        workdirs = [str(tmp_path / name / run) for run in "ab"]
        if name == "stopped":
            stop_after(5)
            with open(tmp_path / "log", "w") as stream:
                assert train_together(configs, workdirs, stream=stream) is None
            stop_after(10**9)
        with open(tmp_path / "log", "w") as stream:
            train_together(configs, workdirs, stream=stream)
    for run in "ab":
        a, b = (tmp_path / name / run for name in ("straight", "stopped"))
        assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
        assert [e["event"] for e in lines(b, "events.jsonl")] == ["resumed"]
    folders = [
        together.place(str(tmp_path / name / "a")).folder.removesuffix("/checkpoints")
        for name in ("straight", "stopped")
    ]
    assert arrays(folders[0], 8) == arrays(folders[1], 8)


def breaking(out, labels, hparams, key):
    """Not a number for a margin above 5."""
    value = bradley_terry(out, labels, hparams, key)
    return jnp.where(hparams.margin > 5, jnp.nan, value)


breaking.__annotations__ = bradley_terry.__annotations__


def test_one_that_breaks_stops_alone(make, tmp_path):
    more = {**NO_EVAL, "model__dropout": 0.0, "loss__name": "breaking",
            "train__max_skips": 3}  # fmt: skip
    configs = [make(**more, loss__margin=m) for m in (0.0, 6.0)]
    workdirs = [str(tmp_path / run) for run in "ab"]
    known = LOSSES | {"breaking": breaking}
    with (
        open(tmp_path / "log", "w") as stream,
        pytest.raises(TrainingError, match="/b: step 3: the loss is nan"),
    ):
        train_together(configs, workdirs, losses=known, stream=stream)
    assert [n["step"] for n in lines(tmp_path / "a")] == [3, 6]
    assert [n["step"] for n in lines(tmp_path / "b")] == [3]
    assert (tmp_path / "a" / "evals.json").exists()
    assert not (tmp_path / "b" / "evals.json").exists()
    events = lines(tmp_path / "b", "events.jsonl")
    assert [(e["event"], e["step"]) for e in events] == [("stopped", 3)]
    with (  # again: nothing is trained
        open(tmp_path / "log", "w") as stream,
        pytest.raises(TrainingError, match="/b: step 3: the loss is nan"),
    ):
        train_together(configs, workdirs, losses=known, stream=stream)
    assert "complete: 8 steps" in (tmp_path / "log").read_text()


def test_what_only_one_of_them_needs_is_asked_for(make, tmp_path):
    changes = {"data__world": {"train": 48, "valid": 12, "strength_levels": 0}}
    configs = [
        make(**changes, loss__margin_strength=strength) for strength in (0.0, 0.5)
    ]
    with pytest.raises(ValueError, match="strength.*margin_strength"):
        train_together(configs, [str(tmp_path / "a"), str(tmp_path / "b")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__d_model": 16}, "config.model.d_model = 8 and 16: .* numbers only"),
        ({"optim__name": "lion"}, "config.optim.name = 'adamw' and 'lion'"),
        ({"loss__name": "hinge"}, "config.loss.name = 'bradley_terry' and 'hinge'"),
    ],
)
def test_what_cannot_be_one_program_is_refused(make, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train_together(
            [make(), make(**changes)], [str(tmp_path / "a"), str(tmp_path / "b")]
        )
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_one_group_are_refused(make, both, tmp_path):
    with pytest.raises(ConfigError, match="share a workdir"):
        train_together([make(), make()], [str(tmp_path / "a")] * 2)
    with pytest.raises(ConfigError, match="are in one folder"):
        train_together([make(), make()], [str(tmp_path / "a"), str(tmp_path / "x/b")])
    config = make(**PLAIN, **CHANGES[0])
    with pytest.raises(ConfigError, match="a trains together with other runs"):
        rm_jax.train(config, str(both / "a"))
