"""The text of `after`: what it stands for, and how tables have it."""

import pytest
from ml_collections import ConfigDict

from rm_jax import needs
from rm_jax.needs import after

FIRST = {"members.count": 4, "batch.row_lengths": (64, 128), "init_seed": 0}


def test_it_may_be_anywhere_in_a_value():
    text = after(FIRST, "a/b.parquet")
    value = {"a": [f"hf:{text}#x", 1], "b": (text, None), "c": ConfigDict({"d": text})}
    found = needs.replaced(value, lambda changes, path: f"<{path}>")
    whole = "<a/b.parquet>"
    assert found == {"a": [f"hf:{whole}#x", 1], "b": (whole, None), "c": {"d": whole}}
    two = f"{after(FIRST)},{after({}, 'x')}"
    assert needs.replaced(two, lambda changes, path: f"{len(changes)}{path}") == "3,0x"


def test_the_changes_come_back_as_json_has_them():
    found = []
    chain = {"model.init": after(FIRST), "name": 'a "}} b', "loss.margin": 1e-3}
    needs.replaced(after(chain, "x}"), lambda *args: found.append(args) or "")
    assert found == [(chain, "x}")]
    needs.replaced(chain, lambda *args: found.append(args) or "")
    assert found[1] == (FIRST | {"batch.row_lengths": [64, 128]}, "")


@pytest.mark.parametrize(
    "changes, path, error",
    [
        ("members.count", "", "after\\('members.count'\\): want the changes of a unit"),
        ({}, "/etc", "'/etc'\\): want a path in the run directory"),
        ({}, "a/../../b", "want a path in the run directory"),
    ],
)
def test_what_it_cannot_stand_for_is_refused(changes, path, error):
    with pytest.raises(ValueError, match=error):
        after(changes, path)


@pytest.mark.parametrize("end", ["", "]}", "3}", "[{}, ", '[{}, ""]', '[{}, ""]x'])
def test_a_text_that_only_looks_like_it_is_refused(end):
    with pytest.raises(ValueError, match="rm_jax.experiment.after: use that"):
        needs.replaced(["${after " + end], lambda changes, path: "")


def test_repetitions_have_one_text():
    second = lambda seed, first: {
        "loss.name": "hinge", "init_seed": seed, "model.init": after(first, "x")
    }  # fmt: skip
    a, b = (second(n, {"loss.name": "mse", "init_seed": n}) for n in (0, 1))
    assert a != b and needs.condition(a, ["init_seed"]) == needs.condition(
        b, ["init_seed"]
    )
    want = {"loss.name": "hinge", "model.init": "after loss.name=mse: x"}
    assert needs.shown(a, ["init_seed"]) == want | {"init_seed": 0}
    assert needs.shown(b, ["init_seed"]) == want | {"init_seed": 1}


def test_what_both_units_change_alike_is_left_out_of_the_text():
    world = {"data.world.seed": 7, "batch.row_lengths": (64,)}
    first = world | {"members.count": 4}
    second = world | {"model.init": after(first)}
    third = world | {"model.init": after(second), "data.label_noise": 0.5}
    text = lambda unit: needs.shown(unit, [])["model.init"]
    assert text(second) == "after members.count=4"
    assert text(third) == "after model.init=after members.count=4"
    assert text(world | {"model.init": after(world)}) == "after the base"
