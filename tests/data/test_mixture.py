"""Which rows a run trains on: its sources, less what evaluation sets hold out."""

import json

import pytest

from rm_jax.data import datasets, mixture

KNOBS = {
    "columns": {},
    "world": {"train": 40, "valid": 5, "test": 5},
    "on_bad_row": "raise",
    "valid_fraction": 0.3,
    "test_fraction": 0.3,
}


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "x.jsonl"
    row = lambda i: {"prompt": f"q{i}", "responses": ["a", "b"], "ranks": [0, 1]}
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(100)))
    return path


def prompts(spec):
    source = datasets.open_source(spec, KNOBS)
    return {tuple(m.content for m in r.prompt) for r in source.records()}


@pytest.mark.parametrize("held", ["#valid", "jsonl:{}#valid", "trl:{}/../x.jsonl#test"])
def test_a_split_held_out_of_the_source_is_not_trained_on(rows, held):
    spec = f"jsonl:{rows}"
    held = held.format(rows).replace("x.jsonl/..", ".")
    found = mixture.specs_of({"train": spec, "columns": {}, "eval": {"held": held}})
    assert found["train"] == {"": f"{spec}#train"}
    other = found["held"][""].replace("trl:", "jsonl:")
    assert prompts(other) and not prompts(found["train"][""]) & prompts(other)


def test_a_revision_does_not_hide_the_source():
    train = "hf:org/data"
    for held in ("hf:org/data@main#test", "trl:org/data@abc#valid"):
        assert mixture.specs_of({"train": train, "columns": {}, "eval": {"a": held}})[
            "train"
        ] == {"": "hf:org/data#train"}
    same = {"train": train, "columns": {}, "eval": {"a": "hf:org/data#train"}}
    assert mixture.specs_of(same)["train"] == {"": train}


def test_other_sources_leave_training_whole(rows):
    spec = f"jsonl:{rows}"
    for held in ("jsonl:other.jsonl#valid", "world:#test", spec):
        found = mixture.specs_of({"train": spec, "columns": {}, "eval": {"held": held}})
        assert found == {"train": {"": spec}, "held": {"": held}}
    assert len(prompts(spec)) == 100


def test_a_world_holds_out_too():
    found = mixture.specs_of(
        {"train": "world:", "columns": {}, "eval": {"held": "world:#test"}}
    )
    assert found["train"] == {"": "world:#train"}
    assert not prompts("world:#train") & prompts("world:#test")


def test_a_split_named_for_training_stays(rows):
    train, held = f"jsonl:{rows}#train", f"jsonl:{rows}#valid"
    found = mixture.specs_of({"train": train, "columns": {}, "eval": {"held": held}})
    assert found == {"train": {"": train}, "held": {"": held}}
    with pytest.raises(ValueError, match="names a split, so config.data.eval"):
        mixture.specs_of({"train": held, "columns": {}, "eval": {"held": "#test"}})
    with pytest.raises(ValueError, match="called 'train'"):
        mixture.specs_of({"train": train, "columns": {}, "eval": {"train": held}})


def mixed(**amounts):
    return {
        name: {"spec": f"jsonl:{name}.jsonl", **amount}
        for name, amount in amounts.items()
    }


def test_a_split_of_a_mixture_is_that_split_of_every_source():
    train = mixed(a={"weight": 2}, b={"weight": 1.5})
    evals = {"valid": "#valid", "other": "jsonl:c.jsonl"}
    found = mixture.specs_of({"train": train, "columns": {}, "eval": evals})
    assert found == {
        "train": {"a": "jsonl:a.jsonl#train", "b": "jsonl:b.jsonl#train"},
        "valid": {"a": "jsonl:a.jsonl#valid", "b": "jsonl:b.jsonl#valid"},
        "other": {"": "jsonl:c.jsonl"},
    }


def test_only_the_source_that_is_held_out_of_is_cut():
    train = mixed(a={"count": 2}, b={"count": 3})
    data = {"train": train, "columns": {}, "eval": {"held": "jsonl:b.jsonl#test"}}
    found = mixture.specs_of(data)
    assert found["train"] == {"a": "jsonl:a.jsonl", "b": "jsonl:b.jsonl#train"}
    assert mixture.is_counted(data)
    train["b"]["spec"] += "#valid"
    with pytest.raises(ValueError, match="data.train.b = 'jsonl:b.jsonl#valid' names"):
        mixture.specs_of({**data, "eval": {"held": "#test"}})


def test_the_parts_of_a_mixture_have_columns_of_their_own_or_those_of_all():
    train = mixed(a={"weight": 2}, b={"weight": 1, "columns": {"prompt": "q"}})
    shared = {"prompt": "question"}
    parts = mixture.parts_of({"train": train, "columns": shared})
    assert parts["a"] == ("jsonl:a.jsonl", 2, shared)
    assert parts["b"] == ("jsonl:b.jsonl", 1, {"prompt": "q"})
    assert mixture.parts_of({"train": "world:", "columns": shared}) == {
        "": ("world:", 1.0, shared)
    }
    assert not mixture.is_counted({"train": "world:"})
    assert not mixture.is_counted({"train": train})


@pytest.mark.parametrize("spec", ["jsonl:a.jsonl", "preset:tulu3", "tfds:a", "world:"])
def test_columns_of_a_source_that_takes_none_are_refused(spec):
    train = {"a": {"spec": spec, "weight": 1, "columns": {"prompt": "q"}}}
    with pytest.raises(
        ValueError,
        match=f"config.data.train.a.columns = .*'q'.*: '{spec}' takes no columns: the "
        "formats that do are .'columns', 'hf'",
    ):
        mixture.specs_of({"train": train, "columns": {}, "eval": {}})


def test_columns_of_all_are_for_somebody():
    shared = {"prompt": "q"}
    own = {"spec": "hf:b", "weight": 1, "columns": {"chosen": "c"}}
    for train, evals in (
        ("jsonl:a.jsonl", {"held": "#valid"}),
        ({"a": {"spec": "jsonl:a.jsonl", "weight": 1}, "b": own}, {}),
    ):
        with pytest.raises(ValueError, match="config.data.columns = .*none of .'jsonl"):
            mixture.specs_of({"train": train, "columns": shared, "eval": evals})
    for train, evals in (
        ("hf:a", {"held": "jsonl:b"}),
        ("jsonl:a", {"held": "columns:b"}),
        (
            {"a": {"spec": "jsonl:a", "weight": 1}, "b": {"spec": "hf:b", "weight": 1}},
            {},
        ),
    ):
        mixture.specs_of({"train": train, "columns": shared, "eval": evals})


@pytest.mark.parametrize("form", ["preset:nope", "nope", "jsonl:", "hf:org/x@"])
def test_a_spec_that_is_none_names_its_knob(form):
    good = {"spec": "jsonl:a", "weight": 1}
    mixed = {"a": good, "b": {"spec": form, "weight": 1}}
    for train, evals, where in (
        (form, {}, "^config.data.train: "),
        (mixed, {}, "^config.data.train.b: "),
        ("jsonl:a", {"held": form}, "^config.data.eval.held: "),
    ):
        with pytest.raises(ValueError, match=where):
            mixture.specs_of({"train": train, "columns": {}, "eval": evals})


def test_a_world_is_known_by_its_only_source():
    knobs = {"noise": 0.25, "test": 8}
    assert mixture.world_of({"": "world:#test"}, knobs) == ("test", knobs)
    assert mixture.world_of({"": "world:"}, {}) == ("", {})
    assert mixture.world_of({"": "jsonl:world#test"}, knobs) is None
    both = {"a": "world:#test", "b": "world:#test"}
    assert mixture.world_of(both, knobs) is None


def test_a_world_of_other_knobs_is_held_out_as_the_own_one():
    spec = "world:noise=0,responses=3#test"
    found = mixture.world_of({"": spec}, {"noise": 0.25, "seed": 3})
    assert found == ("test", {"noise": 0, "responses": 3, "seed": 3})
    specs = mixture.specs_of(
        {"train": "world:", "columns": {}, "eval": {"clean": spec}}
    )
    assert specs["train"] == {"": "world:#train"}
    assert not prompts("world:#train") & prompts(spec)
    assert prompts("world:#test") == prompts(spec)  # the labels differ, not the prompts
