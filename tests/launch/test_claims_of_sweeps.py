"""What seeds can detect before anything is trained, and where workers run."""

import pytest
import roots

from rm_jax import config, experiment, hyper
from rm_jax.launch import claims, local
from rm_jax.report import sweep


def made(units, **knobs):
    base = config.load("rm_jax:base")
    for key, value in knobs.items():
        config.override(base, key.replace("__", "."), value)
    return experiment.Experiment(
        "x.py", "0" * 64, "?", base, tuple(units), (), ("init_seed",), {}, ()
    )


SEEDS = hyper.product(
    [hyper.sweep("loss.name", ["a", "b"]), hyper.sweep("init_seed", [0, 1, 2])]
)


def test_before_training_the_test_set_alone_limits(tmp_path):
    # A paired t test of 3 pairs has a power of .8 at 3.26 standard deviations, and
    # √(2·.25/800) is .025.
    said = claims.smallest(made(SEEDS, data__world__test=800), str(tmp_path))
    assert "that 3 seeds detect" in said and "800 pairs" in said
    found = float(said.partition("about ")[2].split()[0])
    assert found == pytest.approx(3.26 * 0.025, abs=2e-4)


@pytest.mark.parametrize(
    "units, knobs, text",
    [
        (SEEDS[:1], {}, "none; give two seeds or more"),
        (SEEDS, {"data__train": "jsonl:x.jsonl"}, "known when units of two"),
    ],
)
def test_what_cannot_be_known_is_said(units, knobs, text, tmp_path):
    assert text in claims.smallest(made(units, **knobs), str(tmp_path))


def test_the_smallest_difference_is_that_of_the_report(tmp_path):
    roots.write_root(tmp_path, SEEDS, done=roots.noisy({}), null=SEEDS)
    said = claims.smallest(made(SEEDS), str(tmp_path))
    least = sweep.look(str(tmp_path)).detectable
    assert said == (
        f"smallest difference that the seeds detect in test/accuracy: {least:.4f}, in "
        "the comparison that finds least"
    )


def test_a_rule_is_two_lines(tmp_path):
    number = {"value": None, "what": "a figure", "source": "a paper"}
    roots.write_root(
        tmp_path, SEEDS, done=roots.noisy({}), expected={"gain": number, "bad": 0.1}
    )
    sure = experiment.Verdict(True, 0.02, 0.01, 0.03, "3 pairs")
    rules = [
        experiment.Rule("gain", "b is better", "a paper", lambda table: sure),
        experiment.Rule("bad", "a is", "another", lambda table: 1 / 0),
    ]
    lines, sound = claims.judge(str(tmp_path), rules)
    assert not sound and lines == [
        "rule gain: holds: +0.0200, 95 %: +0.0100 to +0.0300",
        "  b is better (a paper); the paper: no number: a figure; 3 pairs",
        "rule bad: undecided: no estimate",
        "  a is (another); the paper: 0.1; ZeroDivisionError: division by zero",
    ]
    assert not sweep.look(str(tmp_path)).missed


def test_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr(local, "_cores", lambda: {3, 5, 6, 7})
    monkeypatch.setattr(local, "_accelerator", lambda: False)
    assert local.Local("r", 0).workers == 4
    assert local.Local("r", 2)._cores == [[3, 6], [5, 7]]
    assert local.Local("r", 1)._cores == [[3, 5, 6, 7]]
    assert local.Local("r", 8)._cores == [[3, 5, 6, 7]] * 8  # not enough: all
    monkeypatch.setattr(local, "_accelerator", lambda: True)
    assert local.Local("r", 0).workers == 1
    assert local.Local("r", 2)._cores == [[3, 5, 6, 7]] * 2
