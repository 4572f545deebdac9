"""Each example of each step once, whatever happens to the run; the right losses."""

import collections
import importlib
import shutil

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import NO_EVAL, lines, train

import rm_jax
from rm_jax import schemas
from rm_jax.build import build
from rm_jax.losses import LOSSES, REGULARIZERS

ON = {"train__example_losses": True, "train__log_every": "1 steps"}


def rows(workdir):
    """(step, id) -> loss, and how often each was written."""
    found = pq.read_table(workdir / "example_losses").to_pylist()
    count = collections.Counter((r["step"], r["id"]) for r in found)
    return {(r["step"], r["id"]): r["loss"] for r in found}, count


@pytest.fixture(scope="module")
def straight(make, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("losses") / "run"
    train(make(**NO_EVAL, **ON), workdir)
    return workdir


def test_every_example_of_every_step_is_there_with_its_loss(straight, make):
    config = rm_jax.config.validate(make(**NO_EVAL, **ON))
    built = build(config, None, LOSSES, REGULARIZERS, lambda line: None)
    loader = built.training.loaders[0]
    want = {
        (step + 1, loader.data.id(item.example))
        for step in range(8)
        for item in loader.items_at(step)
    }
    found, count = rows(straight)
    assert set(found) == want and set(count.values()) == {1} and len(want) == 64
    means = {n["step"]: n["train/loss"] for n in lines(straight)}
    for step, mean in means.items():
        own = [loss for (s, _), loss in found.items() if s == step]
        assert np.mean(own) == pytest.approx(mean, rel=1e-5) and np.ptp(own) > 0


def test_the_union_after_stops_and_a_kill_is_that_of_an_undisturbed_run(
    straight, make, tmp_path, stop_after
):
    config, workdir = make(**NO_EVAL, **ON), tmp_path / "run"
    stop_after(3)  # saves step 3, which is no multiple of save_every
    assert train(config, workdir)[0] is None
    stop_after(10**9)
    module = importlib.import_module("rm_jax.train")
    real = module.CheckpointWriter.save

    def killed(self, step, *rest):
        if step == 5:  # its part is written, its checkpoint is not
            raise OSError("the power is gone")
        return real(self, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.CheckpointWriter, "save", killed)
        stop_after(2)
        with pytest.raises(OSError, match="the power"):
            train(config, workdir)
    names = sorted(p.name for p in (workdir / "example_losses").iterdir())
    assert names == [f"{step}.parquet" for step in (2, 3, 4, 5)]
    stop_after(10**9)  # the next save, of step 6, has step 5 in it, too
    train(config, workdir)
    assert rows(workdir) == rows(straight)


def test_a_part_of_a_newer_rm_jax_is_refused_and_an_older_one_read(
    straight, make, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    path = workdir / "example_losses/8.parquet"
    table = pq.read_table(path)
    assert table.schema.metadata[b"schema_version"] == b"1"
    config = make(**NO_EVAL, **ON)
    for found, why in (("2", "is 2, .*install a newer"), ("x", "is None, ")):
        pq.write_table(table.replace_schema_metadata({"schema_version": found}), path)
        with pytest.raises(schemas.SchemaError, match=f"{path}: schema_version {why}"):
            train(config, workdir)
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=f"{path}: .*: move it away, or bring it"):
        train(config, workdir)
    pq.write_table(table.replace_schema_metadata(None), path)  # as the first were
    assert train(config, workdir)[0] is not None
    assert rows(workdir) == rows(straight)


def test_off_there_is_nothing_and_the_run_is_the_same(straight, make, tmp_path):
    train(make(**NO_EVAL, train__log_every="1 steps"), tmp_path / "off")
    assert not (tmp_path / "off" / "example_losses").exists()
    for a, b in zip(lines(straight), lines(tmp_path / "off"), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-7)


def test_off_the_gradient_program_returns_its_sums_only(make):
    config = rm_jax.config.validate(make(**NO_EVAL))
    built = build(config, None, LOSSES, REGULARIZERS, lambda line: None)
    batch = built.training.batch_at(0)
    total = jax.eval_shape(built.step.zeros, built.shapes)
    given = (built.shapes, total, *batch.chunks[0], 0, np.float32(1), None)
    got, each = jax.eval_shape(built.step.gradient, *given)
    assert each is None and jax.tree.structure(got) == jax.tree.structure(total)


def test_the_scratch_file_of_a_part_that_a_kill_left_is_removed(
    straight, make, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    (workdir / "example_losses/.2.parquet.k3j_9x0a").write_bytes(b"PAR1")
    assert train(make(**NO_EVAL, **ON), workdir)[0] is not None
    assert not [p for p in (workdir / "example_losses").iterdir() if p.name[0] == "."]
    assert rows(workdir) == rows(straight)
