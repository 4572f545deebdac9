"""Pictures of an uncertainty, from a table of predictions made by hand."""

import numpy as np
import pytest

from rm_jax import evals, schemas, store, writer
from rm_jax.evals import run as eval_run
from rm_jax.report import doubts, plots, write_report


def score_table(members, *, gold=None):
    """Pairs whose first response is the better one; members [m e k]."""
    members = np.asarray(members, float)
    _, e, k = members.shape
    nan = np.full(e, np.nan)
    return evals.ScoreTable(
        ids=np.arange(e).astype(str),
        scores=members.mean(0),
        ranks=np.tile(np.arange(k), (e, 1)),
        lengths=np.full((e, k), 5),
        weight=np.ones(e),
        soft=nan,
        strength=nan,
        prompts=np.arange(e),
        gold=np.full((e, k), np.nan) if gold is None else gold,
        source=np.full(e, ""),
        members=members,
    )


def arrow(table):
    e, k = table.scores.shape
    return evals.to_arrow(table, ["p"] * e, [["r"] * k] * e)


def by_margins(*margins):
    """Members' margins of each pair: the second response scores 0."""
    first = np.array(margins, float).T
    return score_table(np.stack([first, np.zeros_like(first)], -1))


def test_the_curve_by_hand():
    # Margins 2, 1, -1, 4; std 1, 0, 2, 3: the third pair is wrong.
    table = by_margins((1, 3), (1, 1), (-3, 1), (1, 7))
    found = doubts.risk(arrow(table))
    coverage, error = found.lines[doubts.STD]
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert error == pytest.approx([0, 0, 1 / 3, 1 / 4])
    by_margin = found.lines[doubts.MARGIN]
    assert by_margin[0].tolist() == [0.25, 0.5, 1]  # two pairs of margin 1
    assert by_margin[1] == pytest.approx([0, 0, 0.25])
    assert found.lines[doubts.ORACLE][1] == pytest.approx([0, 0.25])
    assert found.flat == 0.25
    assert found.area(doubts.STD) == pytest.approx((1 / 3 + 1 / 4) / 4)
    own = evals.evaluate(table, seed=0)["uncertainty/aurc"]
    assert found.area(doubts.STD) == pytest.approx(own)


def test_no_curve_without_an_uncertainty_or_with_scores_that_are_not_finite():
    table = by_margins((1, 3), (1, 1))
    assert doubts.risk(arrow(table._replace(members=None))) is None
    rows = arrow(table)
    column = rows.column_names.index("score")
    broken = rows["score"].to_numpy().copy()
    broken[0] = np.inf
    assert doubts.risk(rows.set_column(column, "score", [broken])) is None
    unranked = table._replace(ranks=np.full((2, 2), -1))
    assert doubts.risk(arrow(unranked)) is None


def test_lines_of_the_best_of_n():
    values = {
        "best_of_1/gold": 0.0,
        "best_of_4/gold": 0.5,
        "best_of_k": 0.9,
        "members/best_of_4/gold": 0.4,
        "reducer/min/best_of_4/gold": 0.6,
        "reducer/median/best_of_4/gold": 0.7,
        "reducer/min/accuracy": 0.8,
    }
    lines = doubts.best_of_n(values)
    want = {"the model": {1: 0, 4: 0.5}, "one member alone": {4: 0.4}, "min": {4: 0.6}}
    assert lines == want
    figure = plots.best_of_n("x", lines)
    assert figure.axes[0].get_xscale() == "log"
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["1", "4"]
    figure = plots.risk_coverage("x", doubts.risk(arrow(by_margins((1, 3)))).lines, 0.5)
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[plots.KEPT, 0], [1, 0]]
    assert doubts.best_of_n({"accuracy": 0.5, "members/best_of_4/gold": 1}) == {}


@pytest.mark.parametrize("members", [True, False])
def test_the_page_has_both_pictures(tmp_path, members):
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(60, 16))
    noisy = gold + rng.normal(size=(3, 60, 16)) * 1.5
    order = np.argsort(np.argsort(-gold, axis=1), axis=1)
    table = score_table(noisy, gold=gold)._replace(ranks=order)
    if not members:
        table = table._replace(members=None)
    value = {"step": 1, "sets": {"pool": evals.evaluate(table, seed=0)}}
    value = schemas.stamped("evals.json", writer.to_json(value))
    store.write_json(tmp_path / "evals.json", value)
    store.makedirs(tmp_path / "predictions")
    eval_run.pq.write_table(arrow(table), tmp_path / "predictions" / "pool.parquet")
    page = store.read_text(write_report(str(tmp_path)))
    assert page.count("Best of n, pool</text>") == 1
    assert ("Error by coverage, pool" in page) == members
    if members:
        aurc = value["sets"]["pool"]["uncertainty/aurc"]
        assert f"(AURC): pairs of small std first {aurc:.3f}" in page
