"""Conditions of a sweep: names, baselines, and a choice that is fair."""

import math

import pytest
import roots

from rm_jax.report import conditions, root

NOISE = roots.product(
    loss__name=["bt", "hinge"], data__label_noise=[0.0, 0.25], init_seed=[0, 1, 2]
)


def made(folder, units, done, **more):
    found = root.load_root(str(roots.write_root(folder, units, done=done, **more)))
    return found, root.figures(found)


def accuracy(changes, null):
    """Grows with the seed; hinge adds .01, of noise .03."""
    gain = 0.01 + 0.02 * (changes["data.label_noise"] > 0)
    value = 0.6 + 0.01 * changes["init_seed"]
    return value + gain * (changes["loss.name"] == "hinge"), 0.6


def test_every_condition_has_the_baseline_that_shares_its_other_keys(tmp_path):
    found, table = made(tmp_path, NOISE, accuracy)
    rows = conditions.compared(table, "valid/accuracy", found, {"loss.name": "bt"})
    assert [row.label for row in rows] == [
        "bt, label_noise=0",
        "bt, label_noise=0.25",
        "hinge, label_noise=0",
        "hinge, label_noise=0.25",
    ]
    gains = [row.difference and row.difference.mean for row in rows]
    assert gains[:2] == [None, None] and gains[2:] == pytest.approx([0.01, 0.03])
    assert [row.baseline["data.label_noise"] for row in rows] == [0, 0.25, 0, 0.25]
    assert all(row.level.n == 3 for row in rows)
    assert rows[0].level.mean == pytest.approx(0.61)


def test_the_first_value_of_the_first_key_is_the_baseline(tmp_path):
    found, table = made(tmp_path, NOISE, accuracy)
    assert conditions.default_baseline(found, False) == {"loss.name": "bt"}
    rows = conditions.compared(table, "valid/accuracy", found)
    gains = [row.difference and row.difference.mean for row in rows]
    assert gains[:2] == [None, None] and gains[2:] == pytest.approx([0.01, 0.03])
    # bt has not finished yet: hinge, which is first now, does not take its place.
    rest = table[table["loss.name"] != "bt"]
    rows = conditions.compared(rest, "valid/accuracy", found)
    assert [(row.baseline, row.difference) for row in rows] == [(None, None)] * 2


def test_an_extra_is_compared_with_the_condition_that_lacks_it(tmp_path):
    extra = {"loss.regularizers.pos_reg.weight": 0.1}
    plain = roots.product(loss__name=["bt", "hinge"], init_seed=[0, 1])
    units = [*plain, *({**unit, **extra} for unit in plain)]
    units.sort(key=lambda unit: unit["loss.name"])
    gain = lambda changes, null: (0.6 + 0.1 * (len(changes) > 2), 0.6)
    found, table = made(tmp_path, units, gain)
    rows = conditions.compared(table, "valid/accuracy", found)
    labels = ["bt", "bt, pos_reg.weight=0.1", "hinge", "hinge, pos_reg.weight=0.1"]
    assert [row.label for row in rows] == labels
    bt = {"loss.name": "bt", "loss.regularizers.pos_reg.weight": None}
    assert [row.baseline for row in rows] == [bt, bt, bt, bt | extra]
    assert rows[1].difference.mean == pytest.approx(0.1)
    assert rows[3].difference.mean == pytest.approx(0)
    one = root.load_root(str(roots.write_root(tmp_path / "one", [{}], done=gain)))
    assert conditions.default_baseline(one, False) == {}


def test_the_detectable_difference_is_that_of_the_comparison_that_finds_least(tmp_path):
    found, table = made(tmp_path, NOISE, roots.noisy({}))
    rows = conditions.compared(table, "valid/accuracy", found)
    own = [row.difference.detectable for row in rows if row.difference]
    assert conditions.detectable(rows) == max(own) > min(own)
    assert math.isnan(conditions.detectable([]))


def test_p_values_are_made_larger_for_their_number(tmp_path):
    found, table = made(tmp_path, NOISE, roots.noisy({"hinge": 0.05}))
    rows = conditions.compared(table, "valid/accuracy", found)
    p = sorted(row.difference.p for row in rows if row.difference)
    assert min(row.p for row in rows[2:]) == pytest.approx(2 * p[0])


def test_a_key_that_the_baseline_lacks_may_have_any_value():
    bt = {"loss.name": "bt", "loss.margin": None, "noise": 0}
    noisy = bt | {"noise": 1}
    one = {"loss.name": "margin_bt", "loss.margin": 1.0, "noise": 1}
    two = one | {"loss.margin": 2.0}
    found = [bt, noisy, one, two]
    given = {"loss.name": "bt"}
    assert conditions.find_baseline(found, given, two) is noisy
    assert conditions.find_baseline(found, given, bt) is bt
    assert conditions.find_baseline([bt, one], given, one) is None
    clean = two | {"noise": 0}  # it is nearer than bt, which fits, too
    given = {"noise": 0}
    assert conditions.find_baseline([*found, clean], given, two) is clean
    pair = [bt | {"loss.name": None, "a": n} for n in (None, 1)]
    assert conditions.find_baseline(pair, given, two | {"a": 2}) is pair[0]
    nearer = pair[1] | {"noise": 1}
    assert conditions.find_baseline(pair, given, nearer) is pair[1]
    both = [bt, bt | {"loss.name": None}]  # each fits, neither is nearer
    assert conditions.find_baseline(both, given, bt | {"loss.margin": 1}) is None


def test_labels_are_short_and_tell_all_apart():
    labels = conditions.labels(
        [
            {
                "loss.margin": None,
                "loss.name": "bt",
                "seed": 1,
                "a.rate": 1,
                "b.rate": 1,
            },
            {
                "loss.margin": 2.0,
                "loss.name": "hinge",
                "seed": 1,
                "a.rate": 1,
                "b.rate": 2,
            },
        ]
    )
    assert labels == ["bt, rate=1", "hinge, margin=2, rate=2"]
    assert (
        conditions.labels([{"a": 1}]) == ["all units"] and conditions.labels([]) == []
    )
    both = conditions.labels([{"a.rate": 1, "b.rate": 1}, {"a.rate": 2, "b.rate": 2}])
    assert both == ["a.rate=1, b.rate=1", "a.rate=2, b.rate=2"]


def test_numbers_of_a_label_are_short_but_tell_apart():
    values = [1 / 3, 7.0, 1e-4, 10_000_000.0, 0.0, float("inf")]
    labels = conditions.labels([{"a.x": value} for value in values])
    assert labels == ["x=0.333333", "x=7", "x=0.0001", "x=10000000", "x=0", "x=inf"]
    said = "after members.count=10 init_seed=3: predictions/seen.parquet"
    both = conditions.labels([{"scores": ""}, {"scores": said}])
    assert both == ["scores=", "scores=after another: predictions/seen.parquet"]
    start = "after train.duration=300 steps noise=0.5"
    both = conditions.labels([{"init": "scratch"}, {"init": start}])
    assert both == ["init=scratch", "init=after another"]
    other = said.replace("10", "5")  # two that would be alike are told apart
    assert conditions.labels([{"s": said}, {"s": other}]) == [f"s={said}", f"s={other}"]
    near = conditions.labels([{"x": 0.12345678}, {"x": 0.12345679}])
    assert near == ["x=0.12345678", "x=0.12345679"]
    assert conditions.labels([{"x": True}, {"x": "b"}]) == ["x=True", "x=b"]


@pytest.mark.parametrize(
    ("baseline", "text"),
    [
        ({"loss": "bt"}, "'loss' is no key of the sweep"),
        (
            {"loss.name": "odin"},
            r"baseline \{'loss.name': 'odin'\}; there are .*'hinge'",
        ),
        ({"init_seed": 0}, "'init_seed' is no key"),
    ],
)
def test_a_baseline_that_is_not_there_is_refused(tmp_path, baseline, text):
    found, table = made(tmp_path, NOISE, accuracy)
    with pytest.raises(ValueError, match=text):
        conditions.compared(table, "valid/accuracy", found, baseline)
    with pytest.raises(
        ValueError, match="no figure 'test/gold'; known: .*test/accuracy"
    ):
        conditions.compared(table, "test/gold", found)


# The rate that is best on valid is not the one that is best on test.
RATES = roots.product(
    loss__name=["bt", "hinge"], optim__learning_rate=[1e-4, 1e-3], init_seed=[0, 1]
)


def by_rate(changes, null):
    low = changes["optim.learning_rate"] == 1e-4
    bt = changes["loss.name"] == "bt"
    nll = 0.5 if low == bt else 0.6  # bt wants the low rate, hinge the high one
    return 0.8 if not low else 0.7, nll


def test_selection_takes_the_best_of_valid_and_shows_what_that_has_on_test(tmp_path):
    found, table = made(tmp_path, RATES, by_rate)
    over = ["optim.learning_rate"]
    chosen = conditions.select(table, "valid/nll", "test/accuracy", found, over)
    assert [c.label for c in chosen] == ["bt", "hinge"]
    assert [c.chosen for c in chosen] == [
        {"optim.learning_rate": 1e-4},
        {"optim.learning_rate": 1e-3},
    ]
    assert [c.shown.mean for c in chosen] == pytest.approx([0.68, 0.78])
    assert [c.selected.mean for c in chosen] == [0.5, 0.5]
    assert [c.among for c in chosen] == [2, 2] and [c.shown.n for c in chosen] == [2, 2]


def test_one_lucky_seed_is_no_choice(tmp_path):
    # The low rate is best on nll; of it one seed has finished, of the high one two.
    units = [unit for unit in RATES[:4] if unit["loss.name"] == "bt"]
    found, table = made(tmp_path, units[1:], by_rate)
    (one,) = conditions.select(table, "valid/nll", "test/accuracy", found, [])
    assert one.chosen["optim.learning_rate"] == 1e-3
    assert (one.among, one.fewer, one.shown.n) == (1, 1, 2)


def test_without_keys_one_condition_is_chosen_of_all(tmp_path):
    found, table = made(tmp_path, RATES, by_rate)
    (one,) = conditions.select(table, "valid/accuracy", "test/accuracy", found, [])
    assert one.among == 4 and one.selected.mean == pytest.approx(0.8)  # more is better
    assert one.chosen == {"loss.name": "bt", "optim.learning_rate": 1e-3}


def test_the_step_is_chosen_in_every_unit_on_its_own(tmp_path):
    found, _ = made(tmp_path, RATES[:2], by_rate)
    table = root.figures_by_step(found)
    table.loc[(table["unit"] == "u00") & (table["step"] == 2), "valid/nll"] = 0.1
    (one,) = conditions.select(table, "valid/nll", "test/accuracy", found, ["step"])
    assert one.chosen == {"step": "2, 4"} and one.shown.n == 2
    # Half of the accuracy at step 2 in the log, all of it at step 4.
    assert one.shown.mean == pytest.approx((0.35 + 0.7) / 2)


def test_whether_more_of_an_uncertainty_is_better():
    figures = ("aurc", "auroc", "accuracy_certain_half")
    found = [conditions.direction(f"valid/uncertainty/{name}") for name in figures]
    assert found == [-1, 1, 1]


@pytest.mark.parametrize(
    "metric", ["test/nll", "rewardbench/accuracy", "test_valid/nll"]
)
def test_selecting_on_anything_but_a_validation_set_is_refused(metric):
    with pytest.raises(ValueError, match="is a test set: .*--show"):
        conditions.check_selection(metric)


def test_selecting_by_a_figure_without_a_better_is_refused(tmp_path):
    with pytest.raises(ValueError, match="whether more of it is better; known:"):
        conditions.check_selection("valid/score_mean")
    known = ("valid/nll", "valid_2/accuracy", "dev/ece", "valid/uncertainty/aurc")
    for good in (*known, "valid/uncertainty/auroc"):
        conditions.check_selection(good)
    found, table = made(tmp_path, RATES, by_rate)
    with pytest.raises(ValueError, match="--over: 'init_seed' is no key"):
        conditions.select(table, "valid/nll", "test/nll", found, ["init_seed"])
    with pytest.raises(ValueError, match="no figure 'valid/ece'"):
        conditions.select(table, "valid/ece", "test/nll", found, [])


def test_keys_of_a_zip_are_one_key_of_the_baseline(tmp_path):
    keys = [{"loss.margin": -m, "loss.strength": m, "data.noise": n}
            for m in (0.0, 1.0) for n in (0.0, 0.25)]  # fmt: skip
    units = [{**k, "init_seed": s} for k in keys for s in (0, 1)]
    over, _ = made(tmp_path, units, roots.noisy({}))
    found = conditions.default_baseline(over, False)
    assert found == {"loss.margin": 0.0, "loss.strength": 0.0}
