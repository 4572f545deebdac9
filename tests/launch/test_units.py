"""Units: stable names, what trains together, which are finished."""

import pytest
import tinysweep
from ml_collections import ConfigDict

from rm_jax import experiment, schemas, store
from rm_jax.config import ConfigError
from rm_jax.experiment import after
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


def test_a_name_is_the_same_with_another_cache_or_tracker(made):
    (a,) = made({"init_seed": 1})
    other = ConfigDict(a.config.to_dict())
    other.data.cache_dir, other.train.wandb = "/elsewhere", "project"
    assert units.name_of(other) == a.name
    other.members.reducer = "min"
    assert units.name_of(other) != a.name


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


FIRST = {"loss.name": "hinge", "init_seed": 3}


def test_a_unit_after_another_names_its_run_wherever_the_root_is(made, tmp_path):
    scores = {"data.denoise.scores": after(FIRST, "predictions/train.parquet")}
    second, first = made(scores, FIRST)
    assert second.needs == (first.name,) and first.needs == ()
    assert second.after == {"data.denoise.scores": (first.name,)}
    path = f"units/{first.name}/predictions/train.parquet"
    assert second.config.data.denoise.scores == f"ROOT/{path}"
    assert second.name == units.name_of(second.config)
    assert str(second) == (
        f"{second.name} data.denoise.scores=after {first.name}: "
        "predictions/train.parquet"
    )
    placed = units.placed(second, str(tmp_path))
    assert placed.data.denoise.scores == f"{tmp_path}/{path}"
    assert units.placed(first, str(tmp_path)).to_dict() == first.config.to_dict()


def test_a_unit_may_start_from_several_runs_and_units_may_form_a_chain(made):
    firsts = [FIRST, FIRST | {"init_seed": 4}]
    second = {"members.count": 2, "model.init": [after(one) for one in firsts]}
    third = {
        "data.train": {"a": {"spec": f"jsonl:{after(second, 'x')}#train", "weight": 1}}
    }
    a, b, c, d = made(third, second, *firsts)
    assert b.needs == (c.name, d.name) and a.needs == (b.name,)
    assert b.config.model.init == tuple(f"ROOT/units/{u.name}" for u in (c, d))
    assert a.config.data.train.a.spec == f"jsonl:ROOT/units/{b.name}/x#train"


def test_a_unit_needs_one_of_the_experiment(made):
    first, second = FIRST, {"model.init": after(FIRST)}
    with pytest.raises(
        ConfigError, match=r"of sweep\(\) is after .*'init_seed': 3.*no"
    ):
        made(second, FIRST | {"init_seed": 4})
    with pytest.raises(ConfigError, match=r"which is no unit of sweep\(\): give exact"):
        made(second, null=[first])
    with pytest.raises(
        ConfigError, match=r"unit .* of null\(\) is after .* or null\(\)"
    ):
        made({"init_seed": 9}, null=[second])
    assert made(first, null=[second])[1].needs == (made(first)[0].name,)
    assert made({}, null=[second, first])[1].needs == (made(first)[0].name,)
    with pytest.raises(
        ConfigError, match=r"of sweep\(\): unknown key config.loss_name"
    ):
        made({"model.init": after({"loss_name": "hinge"})})


def test_units_train_together_where_they_need_the_same(made):
    firsts = [FIRST, FIRST | {"init_seed": 4}]
    seconds = [
        {"data_seed": seed, "model.init": after(first)}
        for first in firsts
        for seed in (5, 6)
    ]
    names = [unit.name for unit in made(*firsts, *seconds)]
    found = units.groups(made(*firsts, *seconds))
    assert found == [names[:2], names[2:4], names[4:]]
    # config.name may differ in one program, needs may not.
    named = [{"name": after(first)} for first in firsts]
    assert [len(g) for g in units.groups(made(*firsts, *named))] == [2, 1, 1]
