"""The experiments of the project: sound units, and rules that tell true from false."""

import numpy as np
import pandas
import pytest

from rm_jax import experiment
from rm_jax.config import flatten
from rm_jax.launch import units

NAMES = ("ensemble_uncertainty", "kwise", "label_noise", "loss_variants", "margin")


def of_losses(c):
    noise, name = c["data.label_noise"], c["loss.name"]
    worse = {"ce_pointwise": 0.06, "label_smooth": 0.002}.get(name, 0.0)
    better = 0.05 if name == "robust_bt" and noise else 0.0
    return {"test/gold_accuracy": 0.7 - noise / 4 - worse + better}


def of_losses_false(c):
    blind = c.get("loss.flips") == 0.499
    return {"test/gold_accuracy": 0.55 if blind else 0.7}


def of_margins(c, true=1.0):
    step = true * c["loss.margin_strength"]
    return {
        "test/accuracy": 0.6 + 0.01 * step,
        "test/strength/4/accuracy": 0.8 + 0.016 * step,
        "test/score_std": 1 + step,
        "test/ece": 0.02 + 0.03 * step,
    }


def of_rankings(c):
    one = c["train.duration"] == "1 epochs"
    nll = {"bt_kwise": 0.5, "plackett_luce": 0.49, "bt": 0.54 if one else 0.57}
    return {"test/nll": nll[c["loss.name"]]}


def of_labels(c):
    gain = {"flip": 0.035, "soft": 0.04, "strength": 0.036}
    found = {"seen/against_gold/auroc": 0.8, "seen/against_gold/lowest_fifth": 0.64}
    smooth = 0.01 * (c.get("loss.name") == "label_smooth")
    more = gain.get(c.get("data.denoise.rule"), smooth)
    return {"test/gold_accuracy": 0.7 + more, **(found if "members.count" in c else {})}


def of_ensembles(c):
    if "members.count" not in c:
        return {}
    sizes = 4 ** np.arange(5)
    one = dict(zip(sizes, (0.0, 0.26, 0.38, 0.3, 0.1), strict=True))
    more = {"mean": 0.1, "min": 0.3, "mean_minus_var": 0.4}
    out = {f"pool/members/best_of_{n}/gold": gold for n, gold in one.items()}
    for way, by in more.items():
        for n, gold in one.items():
            out[f"pool/reducer/{way}/best_of_{n}/gold"] = gold + by * n / 256
    return out


# Figures where every claim is true, and where none is.
PLANTED = {
    "loss_variants": (of_losses, of_losses_false),
    "margin": (of_margins, lambda c: of_margins(c, 0.0)),
    "kwise": (of_rankings, lambda c: {"test/nll": 0.5}),
    "label_noise": (
        of_labels,
        lambda c: {
            "test/gold_accuracy": 0.5,
            "seen/against_gold/auroc": 0.5,
            "seen/against_gold/lowest_fifth": 0.5,
        },
    ),
    "ensemble_uncertainty": (
        of_ensembles,
        lambda c: {k: -v for k, v in of_ensembles(c).items()},
    ),
}


@pytest.fixture(scope="module")
def loaded():
    return {name: experiment.load(f"rm_jax:{name}") for name in NAMES}


def table_of(found, changes, null, figures):
    """As `report.root.figures` gives it; the figures of each unit a little off."""
    rng = np.random.default_rng(0)
    base = flatten(found.base.to_dict())
    keys = dict.fromkeys(key for unit in (*found.units, *found.null) for key in unit)
    rows = []
    for i, unit in enumerate(changes):
        plain = {key: unit.get(key, base.get(key)) for key in keys}
        for key, value in plain.items():
            if isinstance(value, str):
                plain[key] = value.replace("${after", "after")
        own = {k: v + 1e-4 * rng.normal() for k, v in figures(unit).items()}
        rows.append({"unit": f"u{i}", "null": null, **plain, **own})
    return pandas.DataFrame(rows)


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_has_units_and_a_null_world(loaded, name):
    found = loaded[name]
    assert found.null and len({len(rule.claim) > 10 for rule in found.rules}) == 1
    resolved = units.resolve(found)
    assert len(resolved) == len(found.units) + len(found.null)


@pytest.mark.parametrize("name", NAMES)
def test_rules_hold_where_the_claim_is_true(loaded, name):
    found = loaded[name]
    table = table_of(found, found.units, False, PLANTED[name][0])
    said = {rule.name: rule.decide(table) for rule in found.rules}
    assert {n: v.holds for n, v in said.items()} == dict.fromkeys(said, True), said


@pytest.mark.parametrize("name", NAMES)
def test_rules_do_not_hold_where_it_is_false(loaded, name):
    found = loaded[name]
    table = table_of(found, found.null, True, PLANTED[name][1])
    said = {rule.name: rule.decide(table) for rule in found.rules}
    assert not [n for n, v in said.items() if v.holds], said


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_the_paper_have_a_source(loaded, name):
    found = loaded[name]
    for key, value in found.expected.items():
        assert set(value) == {"value", "what", "source"}, key
    assert set(found.expected) <= {rule.name for rule in found.rules}


def test_there_is_no_other_experiment(root):
    files = (root / "experiments").glob("*.py")
    assert {p.stem for p in files if "QUESTION" in p.read_text()} == set(NAMES)
