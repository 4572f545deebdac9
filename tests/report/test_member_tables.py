"""What a report shows of members, from figures that an evaluation made."""

import numpy as np
import pytest

from rm_jax import evals, schemas, store, writer
from rm_jax.evals.reducers import REDUCERS
from rm_jax.report import runs, tables, write_report


@pytest.fixture(scope="module")
def figures():
    rng = np.random.default_rng(0)
    e, nan = 50, np.full(50, np.nan)
    members = rng.normal(size=(4, e, 2)) + [1.0, 0.0]
    table = evals.ScoreTable(
        ids=np.arange(e).astype(str),
        scores=members.mean(0),
        ranks=np.tile([0, 1], (e, 1)),
        lengths=np.full((e, 2), 5),
        weight=np.ones(e),
        soft=nan,
        strength=nan,
        prompts=np.arange(e),
        gold=np.full((e, 2), np.nan),
        source=np.full(e, ""),
        members=members,
    )
    return {
        "valid": evals.evaluate(table, seed=0),
        "plain": evals.evaluate(table._replace(members=None), seed=0),
    }


def test_every_reducer_has_a_row(figures):
    table = tables.reducer_table(figures)
    assert list(table.rows) == [f"valid: {n}" for n in ("one member", *REDUCERS)]
    assert table.headings == ["accuracy", "NLL, nats"]  # no gold here
    row = [cell.value for cell in table.rows["valid: min"]]
    want = [figures["valid"][f"reducer/min/{k}"] for k in ("accuracy", "nll")]
    assert row == [f"{x:.3f}" for x in want]


def test_figures_of_other_kinds_are_no_reducers(figures):
    more = {"strength/1/accuracy": 0.5, "against_gold/rate": 0.1, "members/nll": 0.6}
    more |= {"best_of_4/gold": 1.0, "reducer/min/best_of_4/gold": 1.0}
    assert list(tables.reducer_table({"s": more}).rows) == ["s: one member", "s: min"]


def test_only_sets_with_an_uncertainty_have_one(figures):
    table = tables.doubt_table(figures)
    assert list(table.rows) == ["valid"]
    at = table.headings.index("AUROC of it for errors")
    shown = table.rows["valid"][at].value
    assert shown == f"{figures['valid']['uncertainty/auroc']:.3f}"


@pytest.mark.parametrize("name", ["valid", "plain"])
def test_the_page_shows_members_where_there_are_any(figures, tmp_path, name):
    value = schemas.stamped("evals.json", {"step": 1, "sets": {"s": figures[name]}})
    store.write_json(tmp_path / "evals.json", writer.to_json(value))
    with open(write_report(str(tmp_path)), encoding="utf-8") as f:
        page = f.read()
    assert ("s: mean_minus_var" in page) == (name == "valid")
    assert ("surer half" in page) == (name == "valid")


def test_figures_of_a_running_run_are_told_from_sources(figures, tmp_path):
    values = {f"eval/s/{k}": v for k, v in figures["valid"].items()}
    values |= {f"eval/s/web/{k}": v for k, v in figures["valid"].items()}
    with writer.RunWriter(tmp_path, step=-1) as w:
        w.write_metrics(1, values)
    info = {"data": {"s": {"fingerprints": {"web": "x", "code": "y"}}}}
    store.write_json(tmp_path / "run.json", schemas.stamped("run.json", info))
    found, _ = tables.final_evals(runs.load_run(str(tmp_path)))
    assert found["s"].pop("sources") == {"web": figures["valid"]}
    assert found == {"s": figures["valid"]}
