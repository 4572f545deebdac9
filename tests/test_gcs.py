"""Whole runs on gs://, against an emulated bucket on this machine's loopback."""

import importlib
import io
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

import rm_jax
from rm_jax import arguments, main, store
from rm_jax import config as config_module
from rm_jax.checkpoint import Checkpoints

pytestmark = pytest.mark.slow
train_module = importlib.import_module("rm_jax.train")

TINY = {
    "data.world.train": 64,
    "data.world.valid": 12,
    "data.world.test": 12,
    "data.eval": '{"valid": "#valid"}',
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
    "mesh.data": 8,
    "optim.warmup": "2 steps",
    "train.duration": "8 steps",
    "train.log_every": "1 steps",
    "train.eval_every": "4 steps",
    "train.save_every": "2 steps",
    "train.keep_last": 2,
}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """gs:// of an empty bucket; this process's clients are pointed at the emulator."""
    pytest.importorskip("gcp_storage_emulator")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    settings = {
        "STORAGE_EMULATOR_HOST": address,  # gcsfs, and with it store and Orbax's paths
        "TENSORSTORE_GCS_HTTP_URL": address,  # Orbax's arrays
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else it waits 60 s for gRPC
    }
    command = [
        str(pathlib.Path(sys.executable).parent / "gcp-storage-emulator"),
        *("start", "--host", "127.0.0.1", "--port", str(port)),
        *("--default-bucket", "rm-jax-tests", "--in-memory", "--quiet"),
    ]
    log = tmp_path_factory.mktemp("emulator") / "log"
    with log.open("w") as out, pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        pytest.importorskip("gcsfs")  # it reads a setting when it is imported
        server = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            _wait(f"{address}/storage/v1/b/rm-jax-tests", server)
            yield "gs://rm-jax-tests"
        finally:
            server.terminate()
            server.wait()


def _wait(url, server):
    until = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, "the emulator ended"
            assert time.monotonic() < until, "the emulator does not answer"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    made = rm_jax.config.load("rm_jax:base")
    for key, value in TINY.items():
        config_module.override(made, key, value)
    made.data.cache_dir = str(tmp_path_factory.mktemp("tokens"))
    return made


def train(config, workdir):
    stream = io.StringIO()
    done = rm_jax.train(config, str(workdir), stream=stream)
    return done, stream.getvalue()


@pytest.fixture(scope="module")
def runs(bucket, config, tmp_path_factory):
    """The same run on a disk, and in the bucket, where it is stopped after 5 steps."""
    local, far = str(tmp_path_factory.mktemp("local") / "run"), f"{bucket}/runs/far"
    train(config, local)
    real, calls = train_module.run_step, []

    def stop(*args):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), 15)
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "run_step", stop)
        done, said = train(config, far)
    assert done is None and "SIGTERM: saved step 5" in said
    done, said = train(config, far)
    assert "continuing" in said and "at step 5 of 8" in said and done
    return local, far


def test_a_run_in_a_bucket_is_the_run_on_a_disk(runs):
    local, far = runs
    for name in ("metrics.jsonl", "evals.json", "contract.json", "config.json"):
        here, there = (store.read_bytes(store.join(r, name)) for r in runs)
        assert here == there, name
    a, b = (Checkpoints(f"{run}/checkpoints") for run in runs)
    assert a.latest() == b.latest() == 8
    assert a.manifest(8).arrays == b.manifest(8).arrays
    assert len(b.steps()) <= 3  # the last two and the best
    names = {n.partition("/")[0] for n in store.walk(far)}
    assert {"tokenizer", "tensorboard", "report.html", "predictions"} <= names
    assert store.walk(f"{far}/tensorboard")
    assert main.run(["diff", local, far]) == 0


def test_damage_in_a_bucket_falls_back(runs, bucket, config):
    _, far = runs
    copy = f"{bucket}/runs/damaged"
    store.copy_tree(far, copy)
    checkpoints = Checkpoints(f"{copy}/checkpoints")
    names = [n for n in store.walk(f"{copy}/checkpoints/8") if "ocdbt.process" in n]
    data = max((f"{copy}/checkpoints/8/{n}" for n in names), key=_size)
    content = bytearray(store.read_bytes(data))
    content[len(content) // 2] ^= 1
    store.write_bytes(data, bytes(content))
    done, said = train(config, copy)
    assert "WARNING damaged checkpoint of step 8" in said and done
    assert store.is_dir(f"{copy}/checkpoints/8.damaged")
    local, _ = runs
    assert checkpoints.manifest(8).arrays == (
        Checkpoints(f"{local}/checkpoints").manifest(8).arrays
    )


def _size(path):
    return len(store.read_bytes(path))


def test_eval_score_and_report_by_url(runs, bucket, capsys):
    local, far = runs
    rows = f"{bucket}/data/rows.jsonl"
    line = '{"prompt": "What is 2 + 2?", "responses": ["4", "5"], "ranks": [0, 1]}\n'
    store.write_text(rows, line * 3)
    scores = [f"{bucket}/out/far.jsonl", f"{bucket}/out/near.jsonl"]
    for run, out in zip((far, local), scores, strict=True):
        command = ["score", "--checkpoint", run, "--input", rows, "--output", out]
        assert main.run(command) == 0
    assert store.read_bytes(scores[0]) == store.read_bytes(scores[1]) != b""
    out = f"{bucket}/out/eval"
    command = ["eval", "--checkpoint", far, "--data", f"jsonl:{rows}", "--out", out]
    assert main.run(command) == 0
    assert "n = 3 pairs" in capsys.readouterr()[0]
    assert store.exists(f"{out}/report.html")
    with pytest.raises(arguments.UsageError, match="is there already"):
        main.run(command)


def test_a_prepared_set_and_a_tokenizer_in_a_bucket(bucket, tmp_path):
    rows = f"{bucket}/data/more.jsonl.gz"
    import gzip

    lines = [
        f'{{"prompt": "q{i}", "responses": ["yes {i}", "no"], "ranks": [0, 1]}}\n'
        for i in range(60)
    ]
    store.write_bytes(rows, gzip.compress("".join(lines).encode()))
    out = f"{bucket}/prepared"
    assert main.run(["data", "prepare", "--data", f"jsonl:{rows}", "--out", out]) == 0
    found = rm_jax.data.sources.open_source(f"tfds:{out}/preferences#train")
    near = rm_jax.data.sources.open_source(f"jsonl:{rows}#train")
    assert [r.prompt for r in found.records()] == [r.prompt for r in near.records()]
    folder = f"{bucket}/tokenizer"
    command = ["data", "tokenizer", "--data", f"jsonl:{rows}", "--vocab", "300"]
    assert main.run([*command, "--out", folder]) == 0
    from rm_jax.data.tokenizers import build_tokenizer

    assert build_tokenizer(folder).tokenize("yes 7")


def test_the_quickstart_in_a_bucket(bucket, root, tmp_path):
    """As a newcomer runs it, preempted once; then eval and report of what it left."""
    run, out = f"{bucket}/runs/quickstart", f"{bucket}/out/quickstart"
    plain = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env = plain | {"PYTHONPATH": str(root), "HOME": str(tmp_path)}
    rm_jax = lambda *words: subprocess.Popen(
        [sys.executable, "-m", "rm_jax", *words],
        env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    train = ("train", "--config", "rm_jax:quickstart", "--workdir", run)
    first = rm_jax(*train)
    for line in first.stderr:
        if re.match("step 300 .*nll", line):
            first.terminate()
    assert first.wait() == 75
    saved = Checkpoints(f"{run}/checkpoints").latest()
    assert 300 <= saved < 900
    second = rm_jax(*train)
    _, said = second.communicate()
    assert second.returncode == 0 and f"continuing {run} at step {saved} of 938" in said
    sets = store.read_json(f"{run}/evals.json")["sets"]
    assert sets["test"]["accuracy"] > 0.9 * sets["test"]["ceiling"]
    assert b"</html>" in store.read_bytes(f"{run}/report.html")
    again = rm_jax("eval", "--checkpoint", run, "--data", "world:#test", "--out", out)
    assert f"test: accuracy {sets['test']['accuracy']:.3f}" in again.communicate()[0]
    assert b"</html>" in store.read_bytes(f"{out}/report.html")
