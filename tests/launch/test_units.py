"""Units: stable names, what trains together, which are finished."""

import pytest
import tinysweep

from rm_jax import experiment, schemas, store
from rm_jax.config import ConfigError
from rm_jax.launch import units

BASE = {"data.cache_dir": "/cache", "train.duration": "3 steps"}


@pytest.fixture
def made():
    """Units of some changes of one config that has no path of this machine."""
    from rm_jax import config

    base = config.load("rm_jax:base")
    for key, value in BASE.items():
        config.override(base, key, value)

    def made(*changes, null=()):
        found = experiment.Experiment(
            "x.py", "0" * 64, "?", base, changes, tuple(null), (), {}, ()
        )
        return units.resolve(found)

    return made


def test_a_name_is_that_of_the_config(made):
    (a, b), (c,) = made({"init_seed": 0}, {"init_seed": 1}), made({"init_seed": 1})
    assert a.name != b.name == c.name and len(a.name) == 10
    assert int(a.name, 16) >= 0
    assert a.name == units.name_of(a.config)


def test_a_name_is_the_same_in_another_process(made, tmp_path):
    import subprocess
    import sys

    code = (
        "from rm_jax import config; from rm_jax.launch import units;"
        "c = config.load('rm_jax:base');"
        "c.data.cache_dir = '/cache'; c.train.duration = '3 steps'; c.init_seed = 1;"
        "print(units.name_of(config.validate(c)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [made({"init_seed": 1})[0].name], done.stderr


def test_two_units_of_one_config_are_refused(made):
    with pytest.raises(ConfigError, match="have one config"):
        made({"init_seed": 0}, {"data_seed": 0})
    with pytest.raises(ConfigError, match="have one config"):
        made({"init_seed": 0}, null=[{"data_seed": 0}])


def test_a_bad_unit_is_named_before_anything_runs(made):
    with pytest.raises(ConfigError, match=r"'loss_name'.* of sweep\(\): unknown"):
        made({"loss_name": "bt"})
    with pytest.raises(ConfigError, match=r"of null\(\): config.optim.learning_rate"):
        made({"init_seed": 1}, null=[{"optim.learning_rate": -1.0}])


def test_units_that_differ_in_numbers_are_a_group(made):
    found = made(
        {"loss.name": "hinge", "init_seed": 0},
        {"loss.name": "bradley_terry", "init_seed": 0},
        {"loss.name": "hinge", "init_seed": 1, "loss.margin": 1.0},
        {"loss.name": "hinge", "optim.learning_rate": 1e-5, "loss.margin": 2.0},
        null=[{"loss.name": "hinge", "data.label_noise": 0.5}],
    )
    a, b, c, d, e = (unit.name for unit in found)
    assert units.groups(found) == [[a, e], [b], [c, d]]
    assert units.groups(found, separate=True) == [[a], [b], [c], [d], [e]]


def test_what_cannot_train_together_is_alone(made):
    seeds = [{"init_seed": n, "members.count": 2} for n in (0, 2)]
    assert [len(g) for g in units.groups(made(*seeds))] == [1, 1]
    seeds = [{"init_seed": n, "train.resume": "runs/a"} for n in (0, 1)]
    assert [len(g) for g in units.groups(made(*seeds))] == [1, 1]
    sizes = [{"batch.examples": n} for n in (8, 16)]
    assert [len(g) for g in units.groups(made(*sizes))] == [1, 1]


def test_the_command_of_a_unit(tmp_path):
    assert units.command("r", "abc") == (
        "rm-jax train --config r/units/abc/unit.json --workdir r/units/abc"
    )
    assert units.command("a b", "abc", alone=False).endswith("'a b/alone/abc'")


def test_finished_is_a_whole_evals_json(tmp_path):
    root, path = str(tmp_path), tmp_path / "units" / "abc" / "evals.json"
    assert not units.finished(root, "abc")
    path.parent.mkdir(parents=True)
    path.write_text('{"step": 3, "sets"')
    assert not units.finished(root, "abc")
    value = schemas.stamped("evals.json", {"step": 3, "sets": {}})
    store.write_sealed(str(path), value)
    assert units.finished(root, "abc")
    store.write_json(str(path), value | {"schema_version": 99})
    with pytest.raises(schemas.SchemaError, match="install a newer"):
        units.finished(root, "abc")


def test_the_tinysweep_has_both_worlds(tmp_path):
    found = experiment.load(f"{tinysweep.__file__}:{tmp_path}")
    listed = units.resolve(found)
    assert [unit.null for unit in listed] == [False] * 4 + [True] * 2
    assert [len(group) for group in units.groups(listed)] == [2, 2, 2]
