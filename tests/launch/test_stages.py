"""Sweeps of two stages: units that need the run of another unit."""

import io
import os
import shutil
import signal

import pytest
import tiny
from pool import Pool, write_figures

from rm_jax import experiment, store
from rm_jax.launch import claims, plan, units, worker
from rm_jax.launch.backends import BACKENDS
from rm_jax.launch.sweep import sweep
from rm_jax.report import conditions
from rm_jax.report import root as roots
from rm_jax.report import sweep as report

ONE = """return hyper.product(
        [hyper.sweep("loss.name", LOSSES), hyper.sweep("init_seed", [0, 1])]
    )"""
# The second stage is listed first: hinge, with a seed of its own.
TWO = """from rm_jax.experiment import after
    first = lambda seed: {"loss.name": "bradley_terry", "init_seed": seed}
    second = lambda seed, of: {
        "loss.name": "hinge", "init_seed": seed, "model.init": after(first(of))}
    return [second(0, 0), second(1, 1), first(0), first(1)]"""
NO_NULL = 'world = hyper.fixed("data.world.seed", 7)'


@pytest.fixture
def staged(edited):
    """The address of a sweep of two stages, without a null world."""
    return edited((ONE, TWO), (NO_NULL, "return []"))


def planned(address, root):
    """The plan, and its units by (loss, seed)."""
    found = plan.make(experiment.load(address), root)
    key = lambda unit: (unit.config.loss.name, unit.config.init_seed)
    return found, {key(unit): unit for unit in found.units}


def test_what_is_needed_is_trained_first(run, staged):
    code, said, pool = run(address=staged)
    _, by = planned(staged, run.root)
    first = by["bradley_terry", 0].name, by["bradley_terry", 1].name
    assert code == 0 and "4/4 units finished" in said
    assert pool.started == [first, (by["hinge", 0].name,), (by["hinge", 1].name,)]
    for seed in (0, 1):
        need, own = by["bradley_terry", seed].name, by["hinge", seed].name
        assert f"{own} loss.name=hinge init_seed={seed} model.init=after {need}" in said
        config = store.read_json(units.config_file(run.root, own))
        assert config["model"]["init"] == os.path.abspath(units.folder(run.root, need))


def test_names_are_the_same_in_another_root_and_paths_are_not(run, staged, tmp_path):
    run(address=staged)
    run(address=staged, root=str(tmp_path / "other"))
    a, b = (plan.read(root) for root in (run.root, str(tmp_path / "other")))
    assert a == b


def test_a_root_may_be_moved_before_a_unit_begins(run, staged, tmp_path):
    run(*[1] * 9, address=staged)
    shutil.move(run.root, tmp_path / "moved")
    code, _, _ = run(address=staged, root=str(tmp_path / "moved"))
    own = planned(staged, run.root)[1]["hinge", 0].name
    config = store.read_json(units.config_file(str(tmp_path / "moved"), own))
    assert code == 0 and config["model"]["init"].startswith(f"{tmp_path}/moved/units/")


def test_after_a_failure_nothing_starts_and_the_report_says_so(run, staged):
    fail = lambda root, group: 1
    code, said, pool = run(fail, fail, fail, address=staged)
    _, by = planned(staged, run.root)
    assert code == 1 and len(pool.started) == 3
    for seed in (0, 1):
        unit, need = by["hinge", seed], by["bradley_terry", seed].name
        line = f"NOT STARTED {unit}: needs {need}, which failed"
        assert said.splitlines().count(line) == 2  # when it was known, and at the end
        assert not os.path.exists(units.failure_file(run.root, unit.name))
        lines = list(report.text_lines(report.look(run.root)))
        assert f"{unit.name} not started: needs {need}, which failed" in lines
    code, said, pool = run(address=staged)
    assert code == 0 and len(pool.started) == 3 and "4/4 units finished" in said
    assert "which failed" not in "".join(report.text_lines(report.look(run.root)))


def test_a_chain_ends_at_the_unit_that_failed(run, edited):
    chain = """from rm_jax.experiment import after
    a = {"loss.name": "bradley_terry", "init_seed": 0}
    b = {"loss.name": "hinge", "init_seed": 0, "model.init": after(a)}
    c = {"loss.name": "hinge", "init_seed": 1, "model.init": after(b)}
    return [c, b, a, {"loss.name": "bradley_terry", "data_seed": 1, "init_seed": 1}]"""
    address = edited((ONE, chain), (NO_NULL, "return []"))

    def half(root, group):  # the unit that nothing needs does well
        write_figures(root, group[1])
        return 1

    code, said, pool = run(half, half, half, address=address)
    _, by = planned(address, run.root)
    failed = by["bradley_terry", 0].name
    assert code == 1 and len(pool.started) == 3 and "1/4 units finished" in said
    assert said.count(f"needs {failed}, which failed") == 4
    table = roots.progress(roots.load_root(run.root)).set_index("unit")
    assert list(table["status"]) == ["not started"] * 2 + ["failed", "finished"]
    assert set(table["why"][:2]) == {f"needs {failed}, which failed"}


def test_a_stopped_sweep_goes_on_where_it_was(run, staged):
    def stop(root, group):
        os.kill(os.getpid(), signal.SIGTERM)
        return 75

    code, _, pool = run(stop, address=staged)
    assert code == 75 and len(pool.started) == 1
    table = roots.progress(roots.load_root(run.root)).set_index("unit")
    _, by = planned(staged, run.root)
    assert table.loc[by["hinge", 1].name, "why"] == (
        f"after {by['bradley_terry', 1].name}"
    )
    code, _, rest = run(0, stop, address=staged)
    assert code == 75 and [len(g) for g in rest.started] == [2, 1]
    code, _, last = run(address=staged)
    assert code == 0 and last.started == [rest.started[1], (by["hinge", 1].name,)]


def test_a_worker_refuses_what_is_not_ready(run, staged):
    _, _, pool = run(*[1] * 9, address=staged)
    _, by = planned(staged, run.root)
    own, need = by["hinge", 1].name, by["bradley_terry", 1].name
    with pytest.raises(ValueError) as error:
        worker.work(run.root, [own], io.StringIO())
    assert f"{own} is after {need}, which is not finished: first rm-jax worker" in str(
        error.value
    )
    assert f"--units {','.join(pool.started[0])}" in str(error.value)


def test_repetitions_are_one_condition(run, staged, tmp_path):
    run(address=staged)
    found = roots.load_root(run.root)
    rows = conditions.compared(roots.figures(found), "valid/accuracy", found)
    assert [(row.keys["model.init"], row.level.n) for row in rows] == [
        ("after loss.name=bradley_terry", 2),
        ("scratch", 2),
    ]
    made = experiment.load(staged)
    new = str(tmp_path / "new")
    made.base.data.train = "world:"
    assert "that 2 seeds detect" in claims.smallest(made, new)


def test_needs_that_differ_in_seeds_alone_have_their_names(run, edited):
    crossed = TWO.replace("second(1, 1)", "second(0, 1)")
    address = edited((ONE, crossed), (NO_NULL, "return []"))
    code, _, pool = run(address=address)
    first = pool.started[0]
    known = roots.load_root(run.root).units
    values = [unit.keys["model.init"] for unit in known]
    assert values == [f"after {first[0]}", f"after {first[1]}", "scratch", "scratch"]


class InProcess(Pool):
    """Workers of this process that do train."""

    def ended(self, within):
        group, self._group = self._group, None
        return [(group, worker.work(self.root, group, io.StringIO()))]


@pytest.mark.slow
def test_a_run_starts_from_the_one_before_it(one_device, edited, tmp_path, monkeypatch):
    # Updates that are too small for float32: the second run ends as the first did.
    two = """from rm_jax.experiment import after
    first = {"init_seed": 0}
    second = {"init_seed": 1, "model.init": after(first), "model.head.init": "keep",
              "optim.learning_rate": 1e-30}
    return [second, first]"""
    address = edited((ONE, two), (NO_NULL, "return []"))
    pool, root = InProcess(), str(tmp_path / "root")
    monkeypatch.setitem(BACKENDS, "local", pool)
    assert sweep(address, root, stream=io.StringIO()) == 0
    first, second = (units.folder(root, group[0]) for group in pool.started)
    a, b = (tiny.arrays(folder, 3) for folder in (first, second))
    params = [name for name in a if name.startswith("params")]
    assert params and [a[name] for name in params] == [b[name] for name in params]
