"""Whole runs of seconds, for tests that need one."""

import io
import json
import pathlib

import jax

import rm_jax
from rm_jax import config as config_module
from rm_jax import sharding
from rm_jax.checkpoint import Checkpoints
from rm_jax.data.schema import record_to_dict
from rm_jax.data.world import make_world

WORLD = {"train": 64, "valid": 12, "test": 1}
TINY = {
    **{f"data.world.{split}": n for split, n in WORLD.items()},
    "contract.max_length": 128,
    "contract.max_response": 96,
    "batch.examples": 8,
    "batch.row_lengths": (128,),
    "batch.chunk_tokens": 1024,
    "model.d_model": 8,
    "model.n_layers": 1,
    "model.n_heads": 2,
    "model.n_kv_heads": 1,
    "model.d_ff": 16,
    "model.dropout": 0.1,
    "model.head.init": "normal",
    "optim.learning_rate": 1e-2,
    "optim.warmup": "2 steps",
    "train.ema": 0.5,
    # No two of them in step, so that saves fall between lines of the log.
    "train.duration": "8 steps",
    "train.log_every": "3 steps",
    "train.eval_every": "4 steps",
    "train.save_every": "2 steps",
    "train.keep_last": 9,
    "train.tensorboard": False,
    "train.report": False,
}
NO_EVAL = {"data__eval": "{}", "train__keep_best": 0}
REAL_MESH = sharding.make_mesh


def maker(folder: pathlib.Path):
    """Makes a config out of TINY and some changes, `section__key=value`.

    The evaluation set is a file: for `world:` itself probes would be scored, too.
    """
    valid = [record_to_dict(r) for r in make_world(WORLD).records("valid")]
    text = "".join(json.dumps(row) + "\n" for row in valid)
    (folder / "valid.jsonl").write_text(text)
    fixed = {
        "data.eval": {"valid": f"jsonl:{folder}/valid.jsonl"},
        "data.cache_dir": str(folder / "tokens"),  # shared by all tests of a file
    }

    def make(**changes):
        config = rm_jax.config.load("rm_jax:base")
        changes = {k.replace("__", "."): v for k, v in changes.items()}
        for key, value in (TINY | fixed | changes).items():
            config_module.override(config, key, value)
        return config

    return make


def use_devices(n):
    """Meshes of so many devices from now on; one compiles faster than eight."""
    sharding.make_mesh = lambda sizes, given=None: REAL_MESH(
        sizes, given or jax.devices()[:n]
    )


def train(config, workdir, **more):
    """Trains and returns what it gave and what it said."""
    stream = io.StringIO()
    done = rm_jax.train(config, str(workdir), stream=stream, **more)
    return done, stream.getvalue()


def lines(workdir, name="metrics.jsonl"):
    """Lines of a file of a run."""
    text = (pathlib.Path(workdir) / name).read_text()
    return [json.loads(line) for line in text.splitlines()]


def arrays(workdir, step):
    """Digest of every array of a checkpoint: equal digests are equal bits."""
    return Checkpoints(f"{workdir}/checkpoints").manifest(step).arrays
