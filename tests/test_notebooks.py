"""Notebooks run from top to bottom, on a small world."""

import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SMALL = {
    "data.world.train": 64,
    "data.world.valid": 16,
    "data.world.test": 64,
    "train.duration": "2 steps",
    "train.log_every": "1 steps",
    "train.report": False,
    "train.tensorboard": False,
    "batch.examples": 16,
    "model.d_model": 16,
    "model.n_layers": 1,
}


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=str)
def test_notebook_runs(path, tmp_path):
    notebook = json.loads(path.read_text())
    names: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == [] and cell["execution_count"] is None
        exec(compile("".join(cell["source"]), str(path), "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            small = SMALL | {"data.cache_dir": str(tmp_path / "cache")}
            names |= {"workdir": str(tmp_path / "run"), "overrides": small}
    assert set(names["evals"]) == {"valid", "test"}
    assert len(names["predictions"]) == 2 * 64
