"""`rm-jax eval --root`: a benchmark for every finished unit, once, with kills."""

import json
import shutil

import command
import pytest
import roots

from rm_jax import schemas
from rm_jax.report import root as roots_read
from rm_jax.serve import benchmark


@pytest.fixture
def made(root, tmp_path):
    """A root whose two finished units are copies of the golden run; a third is not."""
    units = roots.product(init_seed=[0, 1, 2])
    roots.write_root(tmp_path / "root", units, done=lambda *_: None)
    for name in ("u00", "u01"):
        golden = root / "tests" / "golden" / "run"
        shutil.copytree(golden, tmp_path / "root" / "units" / name)
    rows = [command.ROW | {"prompt": f"What is {n}?"} for n in range(6)]
    command.rows(tmp_path / "bench.jsonl", *rows)
    return tmp_path / "root"


@pytest.fixture
def loads(monkeypatch):
    """Paths of the units whose model was loaded."""
    paths, real = [], benchmark.load
    load = lambda path, **asked: paths.append(path) or real(path, **asked)
    monkeypatch.setattr(benchmark, "load", load)
    return paths


def test_every_finished_unit_is_evaluated_once(made, loads, rm_jax):
    spec = f"jsonl:{made.parent}/bench.jsonl"
    words = ("eval", "--root", made, "--data", spec, "--name", "bench")
    code, out, err = rm_jax(*words)
    assert code == 0, err
    assert "unit u01, 2 of 2" in out and "bench: accuracy" in out
    assert "1 units are not finished" in out
    assert loads == [f"{made}/units/u00", f"{made}/units/u01"]
    for name in ("u00", "u01"):
        file = made / "units" / name / "evals" / "bench.json"
        value = json.loads(file.read_text())
        assert value["schema_version"] == schemas.VERSIONS["evals.json"]
        assert value["sets"]["bench"]["n_pairs"] == 6 and value["step"] == 6
        assert (made / "units" / name / "predictions" / "bench.parquet").exists()
    table = roots_read.figures(roots_read.load_root(str(made)))
    assert table["bench/accuracy"].notna().all() and len(table) == 2
    code, out, _ = rm_jax("report", "--root", made)
    assert code == 0 and "bench/accuracy" in out

    # A kill before the second file; the same command does that unit alone.
    (made / "units" / "u01" / "evals" / "bench.json").unlink()
    loads.clear()
    code, out, _ = rm_jax(*words)
    assert code == 0 and loads == [f"{made}/units/u01"]
    assert "bench: there already" in out

    # Other data under the same name is refused, in every unit.
    code, _, err = rm_jax(*words, "--limit", "3")
    assert code == 1 and "2 of 2 units could not be" in err
    assert "bench.json is of other data, jsonl:" in err and "choose another" in err


def test_a_step_and_a_reducer_are_those_of_every_unit(made, rm_jax, monkeypatch):
    asked, real = [], benchmark.load
    load = lambda path, **more: asked.append(more) or real(path, **more)
    monkeypatch.setattr(benchmark, "load", load)
    words = ("eval", "--root", made, "--data", f"jsonl:{made.parent}/bench.jsonl")
    code, _, err = rm_jax(*words, "--name", "early", "--step", "6", "--reducer", "min")
    assert code == 0 and asked == [{"reducer": "min", "step": 6}] * 2, err
    file = made / "units" / "u00" / "evals" / "early.json"
    assert json.loads(file.read_text())["step"] == 6
    code, _, err = rm_jax(*words, "--name", "early", "--step", "6")
    assert code == 1 and "was made with --reducer min --step 6, now there are" in err
    assert "choose another name" in err
    code, _, err = rm_jax(*words, "--name", "x", "--step", "4")
    assert code == 1 and "no step 4; there are [6]" in err
    code, _, err = rm_jax(*words, "--name", "x", "--reducer", "least")
    assert code == 1 and "least" in err and "mean_minus_var" in err


@pytest.mark.parametrize("differ", [True, False])
def test_a_spec_that_is_another_set_for_each_unit_is_said(made, monkeypatch, differ):
    marks = lambda unit, *_: iter([("bench", unit.name if differ else "one")])
    monkeypatch.setattr(benchmark, "_evaluate", marks)
    said = []
    benchmark.evaluate_root(str(made), {"bench": "world:#test"}, say=said.append)
    warned = [line for line in said if line.startswith("WARNING bench: world:#test is")]
    assert len(warned) == differ
    assert not differ or "2 different sets in these 2 units" in warned[0]


def test_a_suite_is_several_sets_and_a_damaged_unit_stops_no_other(made, rm_jax):
    spec = f"jsonl:{made.parent}/bench.jsonl"
    suite = made.parent / "suite.json"
    suite.write_text(json.dumps({"one": spec, "two": spec}))
    shutil.rmtree(made / "units" / "u00" / "checkpoints")
    code, out, err = rm_jax("eval", "--root", made, "--suite", suite)
    assert code == 1 and "1 of 2 units could not be evaluated" in err and "u00" in err
    unit = roots_read.load_root(str(made)).units[1]
    assert roots_read.added(unit) == ["one", "two"]
    sets = roots_read.evaluations(unit)
    assert list(sets) == ["valid", "one", "two"] and "FAILED" in out
    same = [json.dumps(sets[name], sort_keys=True) for name in ("one", "two")]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--data", "jsonl:x.jsonl"], "give the figures a --name"),
        (["--data", "jsonl:x.jsonl", "--name", "a/b"], "--name 'a/b': want letters"),
        (
            ["--data", "jsonl:x.jsonl", "--name", "valid"],
            "'valid' is a set of the unit",
        ),
        (["--data", "jsonl:/no.jsonl", "--name", "x"], "/no.jsonl"),
        (["--suite", "SUITE", "--name", "x"], "has names of its own"),
        (["--suite", "SUITE"], "want {"),
        (["--name", "x"], "one of the arguments --data --suite is required"),
    ],
)
def test_what_cannot_be_added_is_refused(made, rm_jax, monkeypatch, flags, why):
    monkeypatch.setattr(benchmark, "load", command.never)
    suite = made.parent / "suite.json"
    suite.write_text('{"a": 3}')
    flags = [str(suite) if flag == "SUITE" else flag for flag in flags]
    code, _, err = rm_jax("eval", "--root", made, *flags)
    assert code == 1 and why in err.splitlines()[-1], err


def test_a_root_without_a_finished_unit_is_refused(tmp_path, rm_jax):
    units = roots.product(init_seed=[0])
    roots.write_root(tmp_path, units, done=lambda *_: None)
    flags = ("--root", tmp_path, "--data", "jsonl:x", "--name", "x")
    code, _, err = rm_jax("eval", *flags)
    assert code == 1 and "none of its 1 units is finished" in err
