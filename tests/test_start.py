"""Runs that start from weights of others: whose numbers they have at step 0."""

import importlib
import json
import pathlib

import numpy as np
import pytest
import tinymodel
from safetensors.numpy import load_file, save_file
from tiny import NO_EVAL

import rm_jax
from rm_jax.losses import LOSSES, REGULARIZERS
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
