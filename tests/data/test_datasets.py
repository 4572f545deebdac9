"""Which rows a run trains on, given its evaluation sets."""

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
    found = mixture.specs_of({"train": spec, "eval": {"held": held}})
    assert found["train"] == f"{spec}#train"
    other = found["held"].replace("trl:", "jsonl:")
    assert prompts(other) and not prompts(found["train"]) & prompts(other)


def test_a_revision_does_not_hide_the_source():
    train = "hf:org/data"
    for held in ("hf:org/data@main#test", "trl:org/data@abc#valid"):
        assert mixture.specs_of({"train": train, "eval": {"a": held}})["train"] == (
            "hf:org/data#train"
        )
    same = {"train": train, "eval": {"a": "hf:org/data#train"}}
    assert mixture.specs_of(same)["train"] == train


def test_other_sources_leave_training_whole(rows):
    spec = f"jsonl:{rows}"
    for held in ("jsonl:other.jsonl#valid", "world:#test", spec):
        found = mixture.specs_of({"train": spec, "eval": {"held": held}})
        assert found == {"train": spec, "held": held}
    assert len(prompts(spec)) == 100


def test_a_world_holds_out_too():
    found = mixture.specs_of({"train": "world:", "eval": {"held": "world:#test"}})
    assert found["train"] == "world:#train"
    assert not prompts("world:#train") & prompts("world:#test")


def test_a_split_named_for_training_stays(rows):
    train, held = f"jsonl:{rows}#train", f"jsonl:{rows}#valid"
    found = mixture.specs_of({"train": train, "eval": {"held": held}})
    assert found == {"train": train, "held": held}
    with pytest.raises(ValueError, match="names a split, so config.data.eval"):
        mixture.specs_of({"train": held, "eval": {"held": "#test"}})
    with pytest.raises(ValueError, match="called 'train'"):
        mixture.specs_of({"train": train, "eval": {"train": held}})
