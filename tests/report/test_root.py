"""What a root holds at any time: figures, progress, one long table."""

import json
import math

import pyarrow.parquet as pq
import pytest
import roots

from rm_jax import schemas
from rm_jax.report import root

UNITS = roots.product(loss__name=["bt", "hinge"], init_seed=[0, 1])


@pytest.fixture
def made(tmp_path):
    """A root of two losses and two seeds, all finished, and a null unit."""
    done = lambda changes, null: (0.5 + 0.01 * changes["init_seed"], 0.6)
    return roots.write_root(tmp_path, UNITS, null=UNITS[:1], done=done)


def remove(unit, *names):
    for name in names:
        (unit / name).unlink()


def test_figures_are_one_row_a_finished_unit(made):
    table = root.figures(root.load_root(str(made)))
    assert list(table.columns[:4]) == ["unit", "null", "loss.name", "init_seed"]
    assert list(table["unit"]) == ["u00", "u01", "u02", "u03", "u04"]
    assert list(table["null"]) == [False] * 4 + [True]
    assert list(table["loss.name"]) == ["bt", "bt", "hinge", "hinge", "bt"]
    assert list(table["valid/accuracy"]) == [0.5, 0.51, 0.5, 0.51, 0.5]
    assert list(table["test/accuracy"])[:2] == pytest.approx([0.48, 0.49])
    assert set(table["test/probes/length/model_bias"]) == {0.25}
    assert set(table["test/swap/flipped_share"]) == {0.0}
    names = [c for c in table.columns if c.startswith("test/")]
    assert not [c for c in names if "reliability" in c or "histogram" in c]


def test_a_key_has_its_value_of_the_config_where_a_unit_does_not_change_it(tmp_path):
    units = [
        {"loss.name": "hinge", "loss.margin": 2.0},
        {"optim.learning_rate": 1e-4, "data.train": {"a": "world:"}},
    ]
    roots.write_root(tmp_path, units, done=lambda *_: (0.5, 0.6))
    found = root.load_root(str(tmp_path))
    first, second = (unit.keys for unit in found.units)
    assert first["optim.learning_rate"] == 1e-3 and second["loss.name"] == "bt"
    assert second["loss.margin"] is None and second["init_seed"] == 0
    assert first["data.train"] == "world:" and second["data.train"] == '{"a": "world:"}'
    assert found.conditions == (
        "loss.margin",
        "loss.name",
        "data.train",
        "optim.learning_rate",
    )
    assert len(root.figures(found).drop_duplicates(["data.train"])) == 2


def test_figures_of_benchmarks_that_were_added_are_further_columns(made):
    path = made / "units" / "u01" / "evals"
    roots.write_evals(path / "bench.json", {"bench": roots.figures(0.9)})
    (path / ".bench.json.x1").write_text("half")  # left by a kill
    found = root.load_root(str(made))
    assert root.added(found.units[1]) == ["bench"] and root.added(found.units[0]) == []
    values = list(root.figures(found)["bench/accuracy"])
    assert values[1] == 0.9 and all(map(math.isnan, values[:1] + values[2:]))


def test_progress_while_units_run(made):
    units = made / "units"
    remove(units / "u01", "evals.json")
    with (units / "u01" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "train/skips": 7')  # torn
    remove(units / "u02", "evals.json", "metrics.jsonl", "timing.jsonl", "run.json")
    remove(units / "u03", "evals.json")
    roots.write_failed(units / "u03", "exit code 1, rm-jax: no more memory")
    for file in (units / "u04").iterdir():
        file.unlink()
    table = root.progress(root.load_root(str(made))).set_index("unit")
    assert list(table["status"]) == [
        "finished", "running", "running", "failed", "not started"
    ]  # fmt: skip
    assert list(table["step"]) == [4, 4, 0, 4, 0]
    assert table.loc["u01", "of"] == 4 and math.isnan(table.loc["u02", "of"])
    assert list(table["seconds"]) == [3.0, 3.0, 0.0, 3.0, 0.0]
    assert list(table["skips"]) == [1, 1, 0, 1, 0]
    assert list(table["alarms"]) == [1, 1, 1, 1, 0]
    assert list(table["loss.name"]) == ["bt", "bt", "hinge", "hinge", "bt"]
    why = f"exit code 1, rm-jax: no more memory; log: {made}/logs/u03.log"
    assert list(table["why"]) == ["", "", "", why, ""]


def test_steps_of_a_run_that_counts_epochs(made):
    for name in ("config.json",):
        path = made / "units" / "u00" / name
        value = roots.config({}) | {"schema_version": 1}
        path.write_text(json.dumps(value | {"train": {"duration": "2 epochs"}}))
    table = root.progress(root.load_root(str(made)))
    assert table["of"][0] == 16  # 2 × 64 examples in batches of 8


def test_a_root_where_nothing_has_begun(tmp_path):
    roots.write_root(tmp_path, UNITS, done=lambda *_: None)
    found = root.load_root(str(tmp_path))
    for table in (root.figures(found), root.figures_by_step(found)):
        assert len(table) == 0 and "loss.name" in table
    table = root.progress(found)
    assert set(table["status"]) == {"not started"}
    assert list(table["loss.name"]) == ["bt", "bt", "hinge", "hinge"]
    assert pq.read_table(root.write_parquet(found)).num_rows == 0


def test_figures_by_step_are_those_of_the_log(made):
    table = root.figures_by_step(root.load_root(str(made)))
    own = table[table["unit"] == "u00"]
    assert list(own["step"]) == [2, 4]
    assert list(own["valid/accuracy"]) == [0.25, 0.5]
    assert list(own["valid/nll"]) == pytest.approx([0.65, 0.6])


def test_the_long_table_has_every_figure_once(made):
    found = root.load_root(str(made))
    path = root.write_parquet(found)
    assert path == str(made / "table.parquet")
    table = pq.read_table(path)
    want = str(schemas.VERSIONS["table"]).encode()
    assert table.schema.metadata[b"schema_version"] == want
    rows = table.to_pandas()
    heads = ["unit", "null", "loss.name", "init_seed", "step", "metric", "value"]
    assert list(rows.columns) == heads
    assert not rows.duplicated(["unit", "step", "metric"]).any()
    logged = rows[rows["metric"] == "eval/valid/accuracy"]
    assert list(logged["value"])[:2] == [0.25, 0.5] and len(logged) == 10
    final = rows[(rows["metric"] == "valid/accuracy") & (rows["unit"] == "u01")]
    assert list(final["value"]) == [0.51] and list(final["step"]) == [4]
    assert not rows["metric"].str.startswith("train/").any()


def test_the_long_table_takes_values_of_several_types(tmp_path):
    units = roots.product(loss__target=[1, "auto", None])
    roots.write_root(tmp_path, units, done=lambda *_: (0.5, 0.6))
    table = pq.read_table(root.write_parquet(root.load_root(str(tmp_path))))
    assert set(table["loss.target"].to_pylist()) == {"1", "auto", None}


def test_what_is_no_root_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no sweep: it has no sweep\.json"):
        root.load_root(str(tmp_path))
    roots.write_root(tmp_path, UNITS, done=lambda *_: None)
    path = tmp_path / "sweep.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | {"question": "another"}))
    with pytest.raises(ValueError, match="seal"):
        root.load_root(str(tmp_path))
    del value["seal"]
    path.write_text(json.dumps(value | {"schema_version": 2}))
    with pytest.raises(schemas.SchemaError, match=r"sweep\.json: .* is 2"):
        root.load_root(str(tmp_path))
