"""Sweeps: what is started, retried, reported and judged, without training anything."""

import io
import os
import signal

import pytest
import tinysweep
from command import assert_one_line
from pool import write_figures

from rm_jax import experiment, rundir, store
from rm_jax.config import ConfigError
from rm_jax.launch import locks, plan, units, worker
from rm_jax.launch.backends import BACKENDS
from rm_jax.report import root as roots
from rm_jax.report import sweep as sweep_report
from rm_jax.report import sweep_html, verdicts
from rm_jax.train import TrainingError


def test_a_dry_run_writes_nothing(run, tmp_path):
    code, said, pool = run(dry_run=True)
    assert code == 0 and not pool.started and not os.path.exists(run.root)
    assert said.count("rm-jax train --config ") == 6
    assert said.count("rm-jax worker --root ") == 3
    assert "6 units, 2 of them of the null world, in 3 programs; 3 programs" in said
    assert "smallest difference" in said


def test_the_plan_is_a_line_a_program_and_a_file_of_commands(run):
    full = run(dry_run=True)[1].splitlines()
    code, said, pool = run()
    first = pool.started[1][0]
    assert f"to run: 2 units, {first}: loss.name=hinge init_seed=0,1\n" in said
    assert "data.world.seed=7 init_seed=0,1 (null world)\n" in said
    assert "rm-jax" not in said and f"unit: {run.root}/plan.txt" in said
    with open(f"{run.root}/plan.txt") as file:
        assert file.read().splitlines() == full[1:-2]
    assert f"finished: 2 units, {first}: loss.name=hinge" in run()[1]


def test_a_whole_sweep_and_its_verdicts(run):
    code, said, pool = run()
    assert code == 0 and [len(group) for group in pool.started] == [2, 2, 2]
    assert "6/6 units" in said and "valid/accuracy 0.9000" in said
    # Differences .2 and .3: mean .25, t(.975, 1) * .05 = .6353.
    assert "rule gain: does not hold: +0.2500, 95 %: -0.3853 to +0.8853" in said
    assert "rule gain, null world: undecided: no estimate" in said
    assert "the paper: 0.5 (nobody)" in said
    found = store.read_json(store.join(run.root, "verdicts.json"))["rules"]
    assert [(rule["null"], rule["holds"]) for rule in found] == [
        (False, False),
        (True, None),
    ]


def test_claims_are_known_before_they_are_judged(run):
    """A page of a sweep that still runs says what it is about to find out."""
    fail = lambda root, group: worker.WRONG
    run(fail, fail, fail)
    os.remove(store.join(run.root, "verdicts.json"))
    known = roots.load_root(run.root)
    rules = verdicts.load(known)
    assert [(r.name, r.null, r.verdict) for r in rules] == [
        ("gain", False, "not judged yet"), ("gain", True, "not judged yet"),
    ]  # fmt: skip
    assert rules[0].expected.startswith("0.5") and rules[0].claim
    assert verdicts.not_reproduced(rules) == []
    page = store.read_text(sweep_html.write_page(sweep_report.look(run.root)))
    assert "not judged yet" in page and "Nothing: every claim holds" not in page


def test_what_is_finished_is_never_run_again(run):
    run()
    code, said, pool = run()
    assert code == 0 and not pool.started and "0 programs to run" in said
    assert "rule gain: does not hold" in said


def test_each_unit_alone(run):
    code, _, pool = run(separate=True)
    assert code == 0 and [len(group) for group in pool.started] == [1] * 6
    with pytest.raises(ValueError, match="another --root"):
        run(root=run.root + "2")
        run(root=run.root + "2", separate=True)


def test_a_unit_whose_config_is_wrong_starts_once(run):
    code, said, pool = run(0, lambda root, group: worker.WRONG, 0)
    first, bad, null = pool.started
    assert code == 1 and "starts again" not in said and "4/6 units" in said
    assert f"FAILED {bad[0]} loss.name=hinge" in said and "exit code 78" in said


def test_a_worker_says_what_is_wrong_with_a_config(run, monkeypatch):
    def wrong(*_, **__):
        raise ConfigError("config.batch.examples = 0:\nwant more")

    run(dry_run=False)
    monkeypatch.setattr("rm_jax.train.train_together", wrong)
    group = plan.read(run.root)["groups"][0]
    for name in group:
        os.remove(f"{units.folder(run.root, name)}/evals.json")
    said = io.StringIO()
    assert worker.work(run.root, group, said) == worker.WRONG
    assert said.getvalue() == "rm-jax: config.batch.examples = 0: want more\n"


def test_a_failing_unit_starts_three_times_and_the_others_go_on(run):
    fail = lambda root, group: 1
    code, said, pool = run(0, fail, 0, fail, fail)
    first, bad, null = pool.started[:3]
    assert pool.started == [first, bad, null, bad, bad] and code == 1
    assert said.count("starts again") == 2 and "exit code 1, start 5" in said
    assert f"FAILED {bad[0]} loss.name=hinge" in said and "  | start 5" in said
    assert "4/6 units" in said
    for name in bad:
        why = store.read_json(units.failure_file(run.root, name))
        assert why["error"] == "exit code 1, start 5"
        assert why["log"] == worker.log_file(run.root, bad)
    table = roots.progress(roots.load_root(run.root)).set_index("unit")
    error = f"exit code 1, start 5; log: {worker.log_file(run.root, bad)}"
    assert {table.loc[name, "why"] for name in bad} == {error}
    assert "rule gain: undecided" in said
    code, said, pool = run()
    assert code == 0 and pool.started == [bad]  # and what failed may start again
    assert "6/6 units finished" in said


def test_a_unit_that_ends_well_without_figures_failed(run):
    code, said, _ = run(*[lambda root, group: 0] * 9)
    assert code == 1 and said.count("FAILED") == 12 and "exit code 0, start" in said


def test_a_preemption_does_not_count(run):
    code, said, pool = run(*[75, -signal.SIGTERM, 75, 75] * 3)
    assert code == 0 and len(pool.started) == 15 and said.count("preempted") == 12


def test_a_part_of_a_group_that_finished_is_kept(run):
    def half(root, group):
        write_figures(root, group[0])
        return 1

    code, said, pool = run(half, 0, 0, 1, 1)
    assert code == 1
    one, other = pool.started[0]
    assert f"finished {one}" in said and f"FAILED {other}" in said
    assert not os.path.exists(units.failure_file(run.root, one))


def test_a_signal_stops_the_workers_and_says_how_to_go_on(run):
    def stop(root, group):
        os.kill(os.getpid(), signal.SIGTERM)
        return 75

    before = signal.getsignal(signal.SIGTERM)
    code, said, pool = run(0, stop)
    assert code == 75 and len(pool.started) == 2
    assert pool.sent[0] == signal.SIGTERM and signal.SIGKILL not in pool.sent
    assert "SIGTERM: workers have saved; the same command continues" in said
    assert signal.getsignal(signal.SIGTERM) == before
    code, _, rest = run()
    assert code == 0 and rest.started == [pool.started[1], rest.started[1]]


def test_ctrl_c_twice_ends_the_workers(run):
    def stop(root, group):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(stop)
    assert BACKENDS["local"].sent[:2] == [signal.SIGTERM, signal.SIGKILL]


def test_new_units_make_new_groups(run, edited):
    _, _, first = run()
    names = [list(group) for group in first.started]
    assert plan.read(run.root)["groups"] == names
    address = edited(('init_seed", [0, 1]', 'init_seed", [0, 1, 2]'))
    found = plan.make(experiment.load(address), run.root)
    assert [list(group) for group in found.groups[:3]] == names
    assert [len(group) for group in found.groups[3:]] == [1, 1, 1]


def test_units_that_are_gone_are_refused(run, edited):
    run()
    address = edited(('init_seed", [0, 1]', 'init_seed", [0, 3]'))
    with pytest.raises(ValueError, match="holds 3 of 6 units .*choose another --root"):
        plan.make(experiment.load(address), run.root)


def test_a_root_of_something_else_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"holds no sweep, but \['valid.jsonl'\]"):
        (tmp_path / "valid.jsonl").write_text("")
        run(root=str(tmp_path))
    with pytest.raises(ValueError, match="want a local folder"):
        run(root="gs://bucket/root")


def test_an_unknown_backend_lists_the_known(run):
    with pytest.raises(ValueError, match=r"'cloud'; known: \['local'\]"):
        run(backend="cloud")


def test_an_unknown_knob_of_a_loss_fails_before_anything_runs(run, edited):
    with pytest.raises(ConfigError, match="unit .*loss.name=hing.*known"):
        run(address=edited(('"hinge")', '"hing")')))
    assert not os.path.exists(run.root)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.head.name", "linaer", "head.name = 'linaer'; known: "),
        ("members.reducer", "wco", "reducer 'wco': known: "),
    ],
)
def test_an_unknown_name_fails_before_anything_runs(run, edited, key, value, message):
    losses = 'hyper.sweep("loss.name", LOSSES)'
    address = edited((losses, f'hyper.fixed("{key}", "{value}")'))
    with pytest.raises(ConfigError, match=message):
        run(address=address)
    assert not os.path.exists(run.root)


def test_while_nothing_ends_the_last_line_of_each_worker_is_shown(run):
    code, said, pool = run(silent=2)
    assert code == 0 and said.count(f"{pool.started[0][0]}: start 1\n") == 2


def test_a_rule_that_raises_is_undecided_and_an_error(run, edited):
    code, said, _ = run(address=edited(("SEEDS)\n", "('no such seed',))\n")))
    assert code == 1 and "rule gain: undecided: no estimate" in said
    assert "no column 'no such seed'" in said


@pytest.fixture
def group(run):
    """A group of the root that is not finished."""
    _, _, pool = run(*[1] * 9)
    return pool.started[0]


def test_a_worker_trains_a_whole_group(run, group, monkeypatch):
    from rm_jax import train

    seen = []

    def fake(configs, workdirs, stream):
        for config, workdir in zip(configs, workdirs, strict=True):
            assert rundir.claim(workdir, config) is False  # unit.json is no other run
        assert not any(os.path.exists(units.failure_file(run.root, n)) for n in group)
        seen.append([units.name_of(c) for c in configs])
        for name in group:
            write_figures(run.root, name)
        return [{}]

    monkeypatch.setattr(train, "train_together", fake)
    assert worker.work(run.root, group, io.StringIO()) == 0
    assert seen == [list(group)]
    assert worker.work(run.root, group, io.StringIO()) == 0 and len(seen) == 1


def test_a_worker_that_is_stopped_says_75(run, group, monkeypatch):
    from rm_jax import train

    monkeypatch.setattr(train, "train_together", lambda *_, **__: None)
    assert worker.work(run.root, group, io.StringIO()) == 75


def test_a_worker_lets_its_lock_go_when_it_fails(run, group, monkeypatch):
    from rm_jax import train

    def fail(*_, **__):
        raise TrainingError("NaN")

    monkeypatch.setattr(train, "train_together", fail)
    with pytest.raises(TrainingError):
        worker.work(run.root, group, io.StringIO())
    path, waited = store.join(run.root, "locks", group[0]), []
    with locks.held(path, lambda: waited.append(1)):
        assert not waited


def test_a_part_of_a_group_is_no_group(run, group):
    with pytest.raises(ValueError, match="is no group of"):
        worker.work(run.root, group[:1], io.StringIO())


def test_a_lock_is_waited_for(tmp_path):
    path = str(tmp_path / "lock")
    first = locks.held(path)
    first.__enter__()
    waited = []

    def waiting():
        waited.append(1)
        first.__exit__(None, None, None)

    with locks.held(path, waiting):
        assert waited == [1]


def test_the_command_line(rm_jax, run, tmp_path):
    words = ["--experiment", f"{tinysweep.__file__}:{tmp_path}"]
    code, out, err = rm_jax("sweep", *words, "--root", run.root, "--dry-run")
    assert code == 0 and "6 units" in out and not err
    code, out, err = rm_jax("sweep", *words, "--root", run.root, "--backend", "cloud")
    assert_one_line(code, err, "--backend 'cloud'", "['local']")
    code, out, err = rm_jax("worker", "--root", run.root, "--units", "a,b")
    assert_one_line(code, err, "holds no sweep", "rm-jax sweep makes one")
    both = ["--vectorised", "--separate"]
    code, out, err = rm_jax("sweep", *words, "--root", run.root, *both)
    assert_one_line(code, err, "not allowed with", "rm-jax sweep --help")
