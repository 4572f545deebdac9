"""Every second has one kind, restarts are charged for, and a run says all of it."""

import importlib

import pytest
from tiny import NO_EVAL, lines, train

from rm_jax.compiles import Compiled
from rm_jax.goodput import KINDS, Ledger, summary


class World:
    """A clock and a compiler, both moved by hand."""

    def __init__(self):
        self.now, self.programs, self.hits, self.seconds = 100.0, 0, 0, 0.0

    def ledger(self):
        see = lambda: Compiled(self.programs, self.hits, self.seconds)
        return Ledger(lambda: self.now, see)

    def compile(self, seconds, hit=False):
        self.now += seconds
        self.seconds += seconds
        self.programs += 1
        self.hits += hit


def test_every_second_has_one_kind():
    world = World()
    ledger = world.ledger()
    world.now += 2
    world.compile(3)
    ledger.enter("waiting")
    world.now += 0.5
    ledger.enter("steps")
    world.compile(1, hit=True)
    world.now += 4
    assert ledger.since_start() == (10.5, 4.0)
    assert ledger.take() == {
        "time/startup": 2.0, "time/compile": 4.0, "time/steps": 4.0,
        "time/waiting": 0.5, "goodput": 4 / 10.5, "compiles": 2, "cache_hits": 1,
    }  # fmt: skip
    assert (ledger.programs("startup"), ledger.programs("steps")) == (1, 1)
    ledger.enter("saving")
    world.now += 1
    assert ledger.take() == {
        "time/saving": 1.0, "goodput": 0.0, "compiles": 0, "cache_hits": 0
    }  # fmt: skip


def test_what_no_time_passed_for_is_no_division_by_zero():
    assert World().ledger().take() == {"goodput": 0.0, "compiles": 0, "cache_hits": 0}
    nothing = summary([])
    assert nothing.total == nothing.goodput == 0 and nothing.mfu is None
    assert "goodput 0.0%" in nothing.line()


def test_time_that_runs_while_the_clock_stands_is_not_negative():
    world = World()
    ledger = world.ledger()
    world.seconds += 5  # jax measures with another clock than ours
    world.now += 1
    assert ledger.take()["time/compile"] == 1.0


def line(begin, step, steps, **more):
    times = {f"time/{kind}": s for kind, s in more.items() if kind in KINDS}
    rest = {k: v for k, v in more.items() if k not in KINDS}
    return {"step": step, "from": begin, "time/steps": steps, **times, **rest}


def test_a_run_without_restart():
    found = summary([line(0, 4, 6.0, startup=1.0, compile=2.0), line(4, 8, 1.0)])
    assert found.seconds["steps"] == 7 and found.redone == 0
    assert found.total == 10 and found.goodput == 0.7
    assert found.shares()["run/compile"] == 0.2
    assert sum(found.shares()[f"run/{kind}"] for kind in KINDS) == pytest.approx(1)


@pytest.mark.parametrize(
    "restart, lost",
    [(8, 0.0), (7, 1.0), (4, 4.0), (3, 4.25), (0, 5.0)],
)
def test_steps_that_a_restart_does_again_are_lost(restart, lost):
    """Steps 1-4 took 1 s, steps 5-8 took 4 s; the run went on from `restart`."""
    before = [line(0, 4, 1.0), line(4, 8, 4.0)]
    found = summary([*before, line(restart, 12, 3.0), line(12, 12, 0.0, evaluation=2)])
    assert found.redone == pytest.approx(lost)
    assert found.goodput == pytest.approx((8 - lost) / 10)


def test_two_restarts_to_the_same_step_lose_both_times():
    found = summary([line(0, 4, 4.0), line(2, 6, 8.0), line(2, 8, 6.0)])
    assert found.redone == 2.0 + 8.0


def test_flops_and_mfu_are_weighted_by_time():
    found = summary(
        [
            line(0, 4, 6.0, seconds=6.0, model_flops_per_s=10.0, mfu=0.1),
            line(4, 8, 2.0, seconds=2.0, model_flops_per_s=50.0, mfu=0.5),
        ]
    )
    assert found.flops == 160 and found.mfu == pytest.approx(0.2)
    assert found.line() == (
        "time 0:00:08: goodput 100.0%; startup 0.0%, compile 0.0%, steps 100.0%, "
        "waiting 0.0%, evaluation 0.0%, saving 0.0%, steps done again 0.0%; "
        "20 model FLOP/s, MFU 20.0%"
    )


def test_a_run_accounts_for_its_time(make, tmp_path, stop_after):
    config = make(train__duration="7 steps")
    stop_after(5)
    train(config, tmp_path / "run")
    stop_after(10**9)
    _, said = train(config, tmp_path / "run")
    timing = lines(tmp_path / "run", "timing.jsonl")
    spans = [(line["from"], line["step"]) for line in timing]
    assert spans == [(0, 3), (3, 5), (5, 5), (5, 6), (6, 7), (7, 7)]
    rates = [n for n in timing if "seconds" in n]
    assert len(rates) == 4
    for n in rates:
        steps = n["step"] - n["from"]
        assert n["examples_per_s"] * n["seconds"] == pytest.approx(8 * steps)
        assert n["seconds"] == pytest.approx(n["time/steps"] + n["time/waiting"])
        assert n["model_flops_per_s"] > 0 and "mfu" not in n  # a CPU has no peak here
    assert ["time_to_first_step" in n for n in timing] == [
        True, False, False, True, False, False
    ]  # fmt: skip
    assert all(n["time_to_first_step"] > n["compiling_before"] for n in timing[::3])
    assert timing[-1]["run/redone"] == 0 and timing[-1]["run/evaluation"] > 0
    shares = [timing[-1][f"run/{kind}"] for kind in KINDS]
    assert sum(shares) == pytest.approx(1)
    assert f"goodput {timing[-1]['run/goodput']:.1%}; startup" in said


def test_steps_lost_to_a_kill_are_charged(make, tmp_path, stop_after, monkeypatch):
    module = importlib.import_module("rm_jax.train")
    config = make(**NO_EVAL, train__save_every="5 steps", train__log_every="1 steps")
    real, count = module.run_step, [0]

    def killed(*args):
        count[0] += 1
        if count[0] == 9 - 1:
            raise OSError("the power is gone")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "run_step", killed)
        with pytest.raises(OSError, match="the power"):
            train(config, tmp_path / "run")
    train(config, tmp_path / "run")
    timing = lines(tmp_path / "run", "timing.jsonl")
    steps = [(n["from"], n["step"]) for n in timing if "seconds" in n]
    assert steps == [(i, i + 1) for i in (0, 1, 2, 3, 4, 5, 5, 6, 7)]
    lost = timing[5]["time/steps"] / sum(
        n.get(f"time/{kind}", 0.0) for n in timing for kind in KINDS
    )
    assert timing[-1]["run/redone"] == pytest.approx(lost) and lost > 0
