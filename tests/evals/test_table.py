import numpy as np
import pyarrow.parquet as pq
import pytest

from rm_jax.evals.predictions import from_arrow, to_arrow
from rm_jax.evals.table import (
    ScoreTable,
    check,
    concat,
    gold_pairs,
    pairs,
    select,
    untied,
)

NAN = np.nan


def same(a: ScoreTable, b: ScoreTable) -> None:
    for name, x, y in zip(ScoreTable._fields, a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


def test_pairs_by_hand(make_table):
    # Ranks 1, 0, 1, unranked: two ordered pairs, one tie.
    table = make_table(
        [[0.5, 2.0, 3.0, 9.0]], [[1, 0, 1, -1]], [[10, 20, 5, 7]], weight=[6.0]
    )
    found = pairs(table)
    rows = zip(found.better, found.worse, found.delta, found.length_delta, strict=True)
    assert sorted(rows) == [(0, 2, -2.5, 5), (1, 0, 1.5, 10), (1, 2, -1.0, 15)]
    np.testing.assert_array_equal(found.weight, [2, 2, 2])
    np.testing.assert_array_equal(found.tie, found.target == 0.5)
    assert found.tie.sum() == 1
    np.testing.assert_array_equal(untied(found).weight, [3, 3])
    assert found.length_mean[found.tie] == 7.5


def test_each_example_counts_its_weight_once(random_table):
    table = random_table(1)
    found = pairs(table)
    total = np.bincount(found.example, found.weight, len(table.ids))
    counted = np.unique(found.example)
    np.testing.assert_allclose(total[counted], table.weight[counted])
    some = select(found, found.delta > 0)
    total = np.bincount(some.example, some.weight, len(table.ids))
    counted = np.unique(some.example)
    np.testing.assert_allclose(total[counted], table.weight[counted])


def test_pairs_are_all_ordered_pairs(random_table):
    table = random_table(2)
    want = {
        (e, i, j)
        for e, ranks in enumerate(table.ranks)
        for i, a in enumerate(ranks)
        for j, b in enumerate(ranks)
        if a >= 0 and b >= 0 and (a < b or (a == b and i < j))
    }
    found = pairs(table)
    soft = ~np.isnan(table.soft[found.example]) & (table.ranks[found.example, 0] < 0)
    got = zip(found.example, found.better, found.worse, strict=True)
    assert {p for p, s in zip(got, soft, strict=True) if not s} == want


def test_soft_labels(make_table):
    table = make_table(
        np.tile([1.0, 0.0], (4, 1)),
        [[0, 1], [-1, -1], [-1, -1], [1, 0]],
        soft=[0.3, 0.2, 0.5, 0.1],
    )
    found = pairs(table)
    np.testing.assert_array_equal(found.better, [0, 1, 0, 1])
    np.testing.assert_allclose(found.target, [0.3, 0.8, 0.5, 0.9])
    np.testing.assert_array_equal(found.tie, [False, False, True, False])
    np.testing.assert_array_equal(found.delta, [1, -1, 1, -1])


def test_gold_pairs_ignore_labels(make_table):
    table = make_table(
        [[1.0, 0.0], [1.0, 0.0]], [[0, 1], [-1, -1]], gold=[[-2.0, 3.0], [1.0, NAN]]
    )
    found = gold_pairs(table)
    assert (found.better, found.worse, found.delta) == (1, 0, -1)


def test_weight_zero_counts_in_nothing(make_table):
    table = make_table([[1.0, 0.0]] * 2, [[0, 1]] * 2, weight=[0.0, 1.0])
    np.testing.assert_array_equal(pairs(table).example, [1])


def test_single_responses_make_no_pair(make_table):
    assert len(pairs(make_table([[1.0], [2.0]], [[0], [0]])).delta) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [[1.0, NAN], [1.0, 2.0]]}, "'row0', response 1: scores is nan"),
        ({"scores": [[1.0, 2.0], [np.inf, 2.0]]}, "'row1', response 0: scores is inf"),
        (
            {"lengths": [[3, 3], [3, 0]]},
            "'row1', response 1: scores is 2.0: given, but",
        ),
        ({"lengths": [[3, 3], [0, 0]]}, "'row1', response 0: lengths is 0: no resp"),
        ({"weight": [1.0, NAN]}, "'row1': weight is nan: want"),
        ({"weight": [-1.0, 1.0]}, "'row0': weight is -1.0: want"),
        ({"weight": [0.0, 0.0]}, "all weights"),
        ({"soft": [NAN, 1.5]}, "'row1': soft is 1.5"),
        ({"ranks": [[0, 1]]}, r"ranks has shape \(1, 2\), want \(2, 2\)"),
    ],
)
def test_bad_tables_name_the_example(make_table, change, message):
    table = make_table([[1.0, 2.0]] * 2, [[0, 1]] * 2)
    change = {k: np.asarray(v) for k, v in change.items()}
    with pytest.raises(ValueError, match=message):
        check(table._replace(**change))


def test_empty_and_rankless_gaps_are_refused(make_table):
    with pytest.raises(ValueError, match="no example"):
        check(make_table(np.zeros((0, 2)), np.zeros((0, 2), int)))
    gap = make_table([[1.0, NAN]], [[0, 1]])
    with pytest.raises(ValueError, match="response 1: ranks is 1: given without"):
        check(gap)
    triple = make_table([[1.0, 2.0, 3.0]], [[0, 1, 2]], soft=[0.5])
    with pytest.raises(ValueError, match="want a probability and two responses"):
        check(triple)


def test_concat_widens(make_table):
    narrow = make_table([[1.0, 0.0]], [[0, 1]])
    wide = make_table([[1.0, 0.0, 3.0]], [[0, 1, 2]])
    both = concat([narrow, wide])
    check(both)
    assert both.scores.shape == (2, 3)
    assert len(pairs(both).delta) == 4
    same(concat([both]), both)
    with pytest.raises(ValueError, match="no tables"):
        concat([])


def test_arrow_round_trip_through_parquet(random_table, tmp_path):
    table = random_table(3)
    prompts = [f"prompt {i}" for i in range(len(table.ids))]
    responses = [[f"{i}/{j}" for j in range(5)] for i in range(len(table.ids))]
    arrow = to_arrow(table, prompts, responses)
    assert arrow.num_rows == (table.lengths > 0).sum()
    pq.write_table(arrow, tmp_path / "p.parquet")
    back = pq.read_table(tmp_path / "p.parquet")
    same(from_arrow(back), table)
    row = back.to_pylist()[-1]
    assert row["response_text"] == f"{row['example']}/{row['response']}"
    assert row["prompt_text"] == f"prompt {row['example']}"
    unranked = [r for r in back.to_pylist() if r["rank"] is None]
    assert len(unranked) == ((table.ranks < 0) & (table.lengths > 0)).sum()


def test_arrow_refuses_missing_texts_and_columns(make_table):
    table = make_table([[1.0, 0.0]], [[0, 1]])
    with pytest.raises(ValueError, match="'row0': no text for response 1"):
        to_arrow(table, ["p"], [["a"]])
    with pytest.raises(ValueError, match="2 texts of prompts for 1"):
        to_arrow(table, ["p", "q"], [["a", "b"]])
    arrow = to_arrow(table, ["p"], [["a", "b"]])
    with pytest.raises(ValueError, match=r"columns \['score'\] are missing"):
        from_arrow(arrow.drop_columns("score"))
    with pytest.raises(ValueError, match="no row"):
        from_arrow(arrow.slice(0, 0))
