"""Runs that start from weights of others: whose numbers they have at step 0."""

import importlib
import json
import pathlib

import numpy as np
import pytest
import tinymodel
from safetensors.numpy import load_file, save_file
from tiny import NO_EVAL, train

import rm_jax
from rm_jax.config import ConfigError
from rm_jax.losses import LOSSES, REGULARIZERS
from rm_jax.weights.source import open_source
from rm_jax.weights.tensors import WeightsError

pytestmark = pytest.mark.usefixtures("one_device")
train_module = importlib.import_module("rm_jax.train")
OTHERS = NO_EVAL | {"model__arch": "init", "model__dropout": 0.0}
RATINGS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def add(spec: str, tensors: dict[str, np.ndarray], **words) -> None:
    """More tensors, and words of config.json, for the folder of a spec."""
    folder = pathlib.Path(spec.removeprefix("hf:"))
    file = folder / "model.safetensors"
    save_file(load_file(file) | tensors, file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | words))


def begin(config, workdir):
    """What a run would start from."""
    config = rm_jax.config.validate(config)
    built = train_module.build(config, None, LOSSES, REGULARIZERS, lambda line: None)
    none = rm_jax.checkpoint.Checkpoints(str(workdir / "checkpoints"))
    return built, train_module.where_to_start(
        config, built, [str(workdir)], none, [].append, lambda line: None
    )


def test_rows_of_a_kept_head_go_to_the_attributes_they_are_called(make, root, tmp_path):
    """The data's are sorted; the folder's are in an order of its own."""
    model = tinymodel.write(tmp_path / "m")
    head = np.arange(40, dtype=np.float32).reshape(5, 8)
    bias = np.arange(5, dtype=np.float32)
    more = {"score.weight": head, "score.bias": bias}
    labels = {str(i): name for i, name in enumerate(RATINGS)}
    add(model, more, id2label=labels)
    config = make(
        **OTHERS,
        model__init=model,
        model__head__name="attributes",
        model__head__init="keep",
        loss__name="regress",
        contract__tokenizer="byte",
        data__train=f"jsonl:{root}/configs/rows/rated.jsonl.gz",
    )
    built, start = begin(config, tmp_path / "run")
    assert built.arch.attributes == tuple(sorted(RATINGS)) != RATINGS
    for j, name in enumerate(built.arch.attributes):
        row = RATINGS.index(name)
        found = start.state.params["head"]
        np.testing.assert_array_equal(found["kernel"][:, j], head[row])
        assert found["bias"][j] == row
    for other in ({**labels, "4": "length"}, {**labels, "4": "coherence"}, None):
        add(model, {}, id2label=other)
        with pytest.raises(WeightsError) as error:
            begin(config, tmp_path / "run")
        assert str(sorted(RATINGS)) in str(error.value)
        assert str(list((other or {}).values())) in str(error.value)


def test_a_run_notes_its_weights_and_goes_on_with_no_others(make, tmp_path):
    one, two = (tinymodel.write(tmp_path / name) for name in "ab")
    scale = {"model.norm.weight": np.full(8, 2, np.float32)}
    add(two, scale)
    config = lambda init, n, **more: make(
        **OTHERS, model__init=init, train__duration=f"{n} steps", **more
    )
    train(config(one, 1), tmp_path / "run")
    record = lambda run: json.loads((tmp_path / run / "run.json").read_text())
    digest = lambda spec: open_source(spec).sha256()
    assert record("run")["weights"] == {"where": one, "sha256": digest(one)}
    members = config([one, two], 1, members__count=2)
    train(members, tmp_path / "members")
    want = [{"where": spec, "sha256": digest(spec)} for spec in (one, two)]
    assert record("members")["weights"] == want and want[0] != want[1]
    train(config(str(tmp_path / "run"), 1), tmp_path / "next")
    assert record("next")["weights"] is None
    train(config(one, 2), tmp_path / "run")
    add(one, scale)
    with pytest.raises(ConfigError, match=r"another content of config.model.init "):
        train(config(one, 3), tmp_path / "run")


def test_members_of_other_weights_are_of_one_process(make, tmp_path, monkeypatch):
    model = tinymodel.write(tmp_path / "m")
    config = make(**OTHERS, model__init=model, members__count=2)
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(ConfigError, match="2 members .* with 2 processes"):
        begin(config, tmp_path / "run")
