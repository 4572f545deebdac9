"""Suite-wide: eight fake devices, no rank promotion, a persistent compile cache."""

import functools
import os
import pathlib
import tempfile

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests compile much and compute little: this halves the time of a cold run.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)

import jax  # noqa: E402  the lines above must come first

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get(
        "RM_JAX_TEST_CACHE", os.path.join(tempfile.gettempdir(), "rm_jax_compile_cache")
    ),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """Folder of real preference data; tests that need it skip without it."""
    default = ROOT.parent / "shared" / "data"
    folder = pathlib.Path(os.environ.get("RM_JAX_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set RM_JAX_TEST_DATA to a copy")
    return folder


class ToyEncoder:
    """Stands in for data.contract.Encoder: records carry their token ids in meta."""

    vocab_size, bos_id = 97, 1

    def __init__(self, max_length, side="left"):
        import types

        self.max_length, self.counts = max_length, {}
        self.contract = types.SimpleNamespace(truncation_side=side)

    def encode_many(self, records):
        from rm_jax.data.contract import Encoded

        for r in records:
            prompt = np.asarray(r.meta["prompt"], np.int32)
            responses = tuple(np.asarray(y, np.int32) for y in r.meta["responses"])
            keep = [min(len(prompt), self.max_length - len(y)) for y in responses]
            steps = tuple(np.asarray(s, np.int32) for s in r.meta["ends"])
            yield r, Encoded(prompt, responses, np.asarray(keep, np.int32), {}, steps)


@pytest.fixture
def toy_set(tmp_path):
    """Makes a token set of random ids of [(prompt length, response lengths), ...].

    steps: of each example and response its steps as (last token, label); fields: of
    each example more fields of its record.
    """
    from rm_jax.data import cache
    from rm_jax.data.schema import Message, Record, Step

    def make(
        examples, max_length=64, side="left", ranks=None, name="toy", seed=0,
        steps=None, fields=None,
    ):  # fmt: skip
        rng = np.random.default_rng(seed)
        draw = lambda n: [1, *rng.integers(2, 97, n - 1).tolist()]

        def records():
            for i, (prompt, lengths) in enumerate(examples):
                k = len(lengths)
                own = steps[i] if steps else ()
                yield Record(
                    id=f"toy-{i}",
                    source="toy",
                    prompt=(Message("user", str(i)),),
                    responses=tuple((Message("assistant", str(j)),) for j in range(k)),
                    ranks=tuple(range(k)) if ranks is None else ranks[i],
                    meta={
                        "prompt": draw(prompt),
                        "responses": [rng.integers(2, 97, n).tolist() for n in lengths],
                        "ends": [[end for end, _ in each] for each in own],
                    },
                    steps=tuple(tuple(Step("s", y) for _, y in each) for each in own),
                    **(fields[i] if fields else {}),
                )

        encoder = ToyEncoder(max_length, side)
        return cache.build(records(), encoder, tmp_path / name, {}, {})

    return make


@pytest.fixture(scope="session")
def fresh_params():
    """Random parameters of an architecture, made by numpy: nothing is compiled."""
    from rm_jax import models

    @functools.cache
    def make(arch, seed=0):
        rng = np.random.default_rng(seed)

        def leaf(path, x):
            draw = rng.standard_normal(x.shape).astype(np.float32)
            if path[-1].key == "scale":
                return 1 + 0.2 * draw
            inputs = (1, *x.shape)[
                -2 if path[-1].key == "kernel" and x.ndim > 1 else -1
            ]
            return draw * inputs**-0.5

        shapes = jax.eval_shape(models.functions(arch)[0], jax.random.key(0))
        return jax.tree_util.tree_map_with_path(leaf, shapes)

    return make


@pytest.fixture(scope="module")
def one_device():
    """Runs of this file use one of the eight devices."""
    import tiny

    from rm_jax import sharding

    tiny.use_devices(1)
    yield
    sharding.make_mesh = tiny.REAL_MESH


@pytest.fixture(scope="module")
def make(one_device, tmp_path_factory):
    """Makes a config of a tiny run and some changes, `section__key=value`."""
    import tiny

    return tiny.maker(tmp_path_factory.mktemp("data"))


@pytest.fixture
def stop_after(monkeypatch):
    """SIGTERM, or another signal, to ourselves in the n-th step of this process."""
    import importlib
    import signal

    train_module = importlib.import_module("rm_jax.train")
    real = train_module.run_step

    def arm(n, number=signal.SIGTERM):
        count = [0]

        def counted(*args):
            count[0] += 1
            if count[0] == n:
                os.kill(os.getpid(), number)
            return real(*args)

        monkeypatch.setattr(train_module, "run_step", counted)

    return arm


@pytest.fixture
def rm_jax(capsys, monkeypatch):
    """Runs a command line as the console script does: code, stdout and stderr."""

    import sys

    from absl import logging

    from rm_jax import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rm-jax", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main.entry()
        out = capsys.readouterr()
        return done.value.code, out.out, out.err

    # What `entry` sets for its process, which here is that of all tests.
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = logging.get_verbosity()
    yield run
    logging.set_verbosity(before)
