"""Runs of 2 and 4 real processes on this machine, joined over loopback by gloo."""

import json
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from rm_jax import cluster, store
from rm_jax.checkpoint import Checkpoints

WORLD = {"train": 96, "valid": 24, "test": 1}
TINY = {
    **{f"data.world.{split}": n for split, n in WORLD.items()},
    "data.eval": '{"valid": "#valid"}',
    "contract.max_length": 128,
    "contract.max_response": 96,
    "batch.examples": 8,
    "batch.row_lengths": "(128,)",
    "batch.chunk_tokens": 1024,
    "model.d_model": 8,
    "model.n_layers": 2,
    "model.n_heads": 2,
    "model.n_kv_heads": 1,
    "model.d_ff": 16,
    "model.head.init": "normal",
    "optim.name": "sgd",
    "optim.b1": 0.0,
    "optim.learning_rate": 1e-2,
    "optim.warmup": "2 steps",
    "train.duration": "10 steps",
    "train.log_every": "1 steps",
    "train.eval_every": "5 steps",
    "train.save_every": "5 steps",
    "train.tensorboard": "False",
    "train.report": "False",
}


def command(workdir, **changes):
    knobs = TINY | {k.replace("__", "."): v for k, v in changes.items()}
    return [
        *(sys.executable, "-m", "rm_jax", "train", "--config", "rm_jax:base"),
        *("--workdir", str(workdir)),
        *(f"--config.{k}={v}" for k, v in knobs.items()),
    ]


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment(devices, **more):
    """Of a process with so many devices of its own."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    own = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "XLA"))}
    return own | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | more


def start(tmp_path, n, workdir, devices=1, join=None, **changes):
    """Starts n processes of one run; their output goes to files."""
    address = f"127.0.0.1:{port()}"
    running = []
    for i in range(n):
        flags = ["--coordinator", address, "--processes", str(n), "--process", str(i)]
        more = {}
        if join is not None:
            flags, more = [], join(i)
        out = (tmp_path / f"{pathlib.Path(workdir).name}.{i}.log").open("w")
        full = command(workdir, **changes) + (flags if n > 1 else [])
        running.append(
            subprocess.Popen(
                full, stdout=out, stderr=out, env=environment(devices, **more)
            )
        )
    return running


def finish(tmp_path, running, workdir, codes=(0,)):
    """Waits for all, and gives what each said."""
    for p in running:
        p.wait(timeout=600)  # Orbax waits 5 minutes for a process that cannot read
    name = pathlib.Path(workdir).name
    said = [(tmp_path / f"{name}.{i}.log").read_text() for i in range(len(running))]
    assert all(p.returncode in codes for p in running), "\n\n".join(said)
    return said


def lines(workdir):
    text = store.read_text(store.join(workdir, "metrics.jsonl"))
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    cache = {"data__cache_dir": str(folder / "tokens")}
    finish(folder, start(folder, 1, folder / "run", devices=4, **cache), folder / "run")
    return folder / "run"


def assert_close(a, b):
    """Losses, gradient norms and evaluations of two runs, line by line."""
    for x, y in zip(lines(a), lines(b), strict=True):
        assert x.keys() == y.keys()
        for key in x:
            assert np.allclose(float(x[key]), float(y[key]), rtol=1e-5, atol=1e-6), key


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_many_processes_train_as_one(one, tmp_path, n):
    run = tmp_path / "run"
    cache = {"data__cache_dir": str(tmp_path / "tokens")}
    running = start(tmp_path, n, run, devices=4 // n, **cache)
    said = finish(tmp_path, running, run)
    assert_close(one, run)
    assert "tokenising" in said[0] and not any("tokenising" in s for s in said[1:])
    assert "accuracy" in said[0] and not any("accuracy" in s for s in said[1:])
    assert len(list((tmp_path / "tokens").glob("*/meta.json"))) == 2
    # A checkpoint of all of them, read by one.
    a, b = (Checkpoints(f"{folder}/checkpoints") for folder in (one, run))
    (x, _, _), (y, _, _) = (c.restore_part("params") for c in (a, b))
    for name in x:
        for u, v in zip(_leaves(x[name]), _leaves(y[name]), strict=True):
            np.testing.assert_allclose(u, v, rtol=1e-5, atol=1e-6)


def _leaves(tree):
    import jax

    return map(np.asarray, jax.tree.leaves(tree))


@pytest.mark.slow
def test_a_checkpoint_of_four_goes_on_in_one(one, tmp_path):
    run, cache = tmp_path / "run", {"data__cache_dir": str(tmp_path / "tokens")}
    half = start(tmp_path, 4, run, train__duration="5 steps", **cache)
    finish(tmp_path, half, run)
    # The schedule is that of 10 steps only if it always was: a run of five, grown.
    (said,) = finish(tmp_path, start(tmp_path, 1, run, devices=4, **cache), run)
    assert "continuing" in said and "at step 5 of 10" in said
    assert [line["step"] for line in lines(run)][-1] == 10


@pytest.mark.slow
def test_sigterm_to_one_saves_the_same_step_in_all(one, tmp_path):
    run, cache = tmp_path / "run", {"data__cache_dir": str(tmp_path / "tokens")}
    long = {"train__duration": "5000 steps", "train__eval_every": "5000 steps"}
    long["train__save_every"] = "5000 steps"
    running = start(tmp_path, 2, run, **cache, **long)
    _until(lambda: (run / "metrics.jsonl").exists() and len(lines(run)) > 3, running)
    running[1].send_signal(signal.SIGTERM)
    said = finish(tmp_path, running, run, codes=(75,))
    (step,) = Checkpoints(f"{run}/checkpoints").steps()
    assert f"SIGTERM: saved step {step}" in said[0]
    assert [line["step"] for line in lines(run)] == list(range(1, step + 1))


# A format of the user: its first row takes until the test says so, or so many seconds.
HELD = """
import pathlib, time
from rm_jax.data.schema import Message, Record

here = pathlib.Path(__file__).parent


def parse(row):
    if not (here / "reading").exists():
        (here / "reading").touch()
        end = time.monotonic() + SECONDS
        while not (here / "go").exists() and time.monotonic() < end:
            time.sleep(0.1)
    prompt, good = f"{row['n']} + 1?", str(row["n"] + 1)
    responses = tuple((Message("assistant", text),) for text in (good, "?"))
    prompt = (Message("user", prompt),)
    return [Record(str(row["n"]), "held", prompt, responses, (0, 1))]
"""


def held(tmp_path, seconds, monkeypatch):
    """Knobs of a run whose first token cache is built when `go` is there."""
    (tmp_path / "held.py").write_text(HELD.replace("SECONDS", str(seconds)))
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    monkeypatch.setenv("PYTHONPATH", path)
    rows = "".join(json.dumps({"n": n}) + "\n" for n in range(32))
    (tmp_path / "rows.jsonl").write_text(rows)
    return {
        "data__train": f"held:parse:{tmp_path}/rows.jsonl",
        "data__eval": "{}",
        "contract__tokenizer": "byte",
        "data__cache_dir": str(tmp_path / "tokens"),
        "train__keep_best": "0",
    }


@pytest.mark.slow
def test_a_token_cache_may_take_longer_than_a_collective_waits(tmp_path, monkeypatch):
    run, knobs = tmp_path / "run", held(tmp_path, 35, monkeypatch)
    knobs["train__duration"] = "2 steps"
    begin = time.monotonic()
    said = finish(tmp_path, start(tmp_path, 2, run, **knobs), run)
    assert time.monotonic() - begin > 35 and lines(run)[-1]["step"] == 2
    assert "tokenising" in said[0] and "tokenising" not in said[1]


@pytest.mark.slow
def test_sigterm_before_the_first_step_ends_all_at_once(tmp_path, monkeypatch):
    run, knobs = tmp_path / "run", held(tmp_path, 600, monkeypatch)
    running = start(tmp_path, 2, run, train__duration="5000 steps", **knobs)
    _until((tmp_path / "reading").exists, running)
    running[1].send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    said = finish(tmp_path, running, run, codes=(75,))
    steps = Checkpoints(f"{run}/checkpoints").steps()
    where = f"saved step {steps[0]}" if steps else "nothing to save yet"
    assert steps in ([], [1]) and f"SIGTERM: {where}; the same command" in said[0]


@pytest.mark.slow
def test_processes_that_were_started_differently_end_before_anything_is_written(
    tmp_path,
):
    address, running = f"127.0.0.1:{port()}", []
    for i in range(2):
        cache = {"data__cache_dir": str(tmp_path / "tokens"), "data_seed": 7 * i}
        flags = ["--coordinator", address, "--processes", "2", "--process", str(i)]
        out = (tmp_path / f"run.{i}.log").open("w")
        full = command(tmp_path / "run", **cache) + flags
        running.append(
            subprocess.Popen(full, stdout=out, stderr=out, env=environment(2))
        )
    for said in finish(tmp_path, running, tmp_path / "run", codes=(1,)):
        assert "processes [1] have another config than process 0" in said, said
    assert not (tmp_path / "run/run.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_one_killed_ends_the_others(one, tmp_path, killed):
    run, cache = tmp_path / "run", {"data__cache_dir": str(tmp_path / "tokens")}
    running = start(tmp_path, 2, run, train__duration="100000 steps", **cache)
    _until(lambda: (run / "metrics.jsonl").exists() and len(lines(run)) > 3, running)
    running[killed].kill()
    begin = time.monotonic()
    running[1 - killed].wait(timeout=60)
    assert time.monotonic() - begin < 60 and running[1 - killed].returncode != 0
    said = (tmp_path / f"run.{1 - killed}.log").read_text()
    last = said.splitlines()[-1]
    # Without process 0, which keeps the account of all, jax may be the first to notice.
    by_jax = killed == 0 and "JAX distributed service detected fatal errors" in said
    assert by_jax or last.startswith("rm-jax: another process of the run ended"), said


@pytest.mark.slow
def test_slurm_is_joined_without_flags(tmp_path):
    run, cache = tmp_path / "run", {"data__cache_dir": str(tmp_path / "tokens")}
    job = str(os.getpid())

    def slurm(i):
        return {
            "SLURM_JOB_ID": job,
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(i),
            "SLURM_LOCALID": str(i),
        }

    running = start(tmp_path, 2, run, join=slurm, train__duration="2 steps", **cache)
    finish(tmp_path, running, run)
    (session,) = store.read_json(run / "run.json")["sessions"]
    assert session["devices"]["processes"] == 2


def _until(ready, running):
    end = time.monotonic() + 240
    while not ready():
        assert time.monotonic() < end, "nothing happens"
        assert all(p.poll() is None for p in running), "a process ended"
        time.sleep(0.2)


@pytest.mark.parametrize(
    "arguments",
    [("host:1", 0, -1), ("", 2, 0), ("host:1", 2, 2), ("host", 2, 0), ("", 0, 1)],
)
def test_half_a_cluster_is_refused(arguments):
    with pytest.raises(ValueError, match="want all three: HOST:PORT, N and 0"):
        cluster.join(*arguments)


@pytest.fixture
def joined(monkeypatch):
    """Calls of jax.distributed.initialize, without the others and their launchers."""
    calls = []
    for name in cluster.LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        cluster.backend.jax.distributed,
        "initialize",
        lambda *address, **more: calls.append((address, more)),
    )
    return calls


@pytest.mark.parametrize(
    "address",
    [
        ":1234", "host:", "host:0", "host:65536", "host:-1", "host:1x", "host:1.5",
        "http://host:80", "tcp://10.0.0.1:80", "::1:80", "host/x:80", "host:\u0661",
    ],
)  # fmt: skip
def test_an_address_at_which_nobody_can_answer_is_refused(address, joined):
    with pytest.raises(ValueError) as error:
        cluster.join(address, 2, 0)
    assert f"--coordinator {address!r}: want HOST:PORT" in str(error.value)
    assert "1 to 65535" in str(error.value) and joined == []


@pytest.fixture
def names(monkeypatch):
    """A clock that sleeping moves, and names that are known from a time on."""
    now, known = [1000.0], {}

    def ask(host, port):
        if now[0] < known.get(host, math.inf):
            raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    monkeypatch.setattr(cluster.time, "monotonic", lambda: now[0])
    sleep = lambda seconds: now.__setitem__(0, now[0] + seconds)
    monkeypatch.setattr(cluster.time, "sleep", sleep)
    return now, known


def test_a_host_that_nobody_knows_is_refused_in_the_end(joined, names, capsys):
    with pytest.raises(OSError, match="--coordinator no.host:80: host 'no.host': Name"):
        cluster.join("no.host:80", 2, 0)
    assert names[0] == [1300.0] and joined == []
    assert capsys.readouterr().err.count("\n") == 1


def test_a_host_that_cannot_be_a_name_is_refused_at_once(joined):
    with pytest.raises(OSError, match="host 'a..b'"):
        cluster.join("a..b:80", 2, 0)
    assert joined == []


def test_a_host_whose_name_comes_later_is_waited_for(joined, names, capsys):
    now, known = names
    known["rm-0.rm"] = 1042.0
    cluster.join("rm-0.rm:80", 2, 1)
    assert now == [1042.0] and joined[0][0] == ("rm-0.rm:80", 2, 1)
    assert capsys.readouterr().err.splitlines() == [
        "--coordinator rm-0.rm:80: host 'rm-0.rm': Name or service not known; asking "
        "again for at most 300 s",
        "waiting for 2 processes at rm-0.rm:80, at most 300 s",
    ]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:65535", "localhost:80"])
def test_it_says_whom_it_waits_for_and_how_long(address, joined, capsys):
    cluster.join(address, 2, 1)
    want = f"waiting for 2 processes at {address}, at most 300 s\n"
    assert capsys.readouterr().err == want
    ((given, more),) = joined
    assert given == (address, 2, 1) and more["initialization_timeout"] == 300


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_NTASKS", ""), ("SLURM_NTASKS", "two"), ("OMPI_COMM_WORLD_SIZE", "x"),
        ("MEGASCALE_NUM_SLICES", "1.5"),
    ],
)  # fmt: skip
def test_a_variable_of_a_launcher_that_is_no_number_is_named(
    name, value, joined, monkeypatch
):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name}='{value}' in .* unset it to run alo"):
        cluster.join()
    assert joined == []


def test_a_launcher_that_jax_does_not_find_is_named(joined, monkeypatch):
    def nothing(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(cluster.backend.jax.distributed, "initialize", nothing)
    with pytest.raises(RuntimeError, match="^--distributed, but no TPU pod, .*I$"):
        cluster.join(detect=True)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(RuntimeError) as error:
        cluster.join()
    text = str(error.value)
    assert text.startswith("OMPI_COMM_WORLD_SIZE=2, but no ")
    assert text.endswith("or unset OMPI_COMM_WORLD_SIZE to run alone")


@pytest.mark.parametrize(
    ("processes", "text", "named"),
    [
        (2, "UNKNOWN: Gloo all-reduce failed: Connection closed by peer", True),
        (2, "UNKNOWN: Gloo AllGather failed: Connection closed by peer", True),
        (2, "UNAVAILABLE: Failed to send RPC to coordination service.", True),
        (2, "RESOURCE_EXHAUSTED: Out of memory", False),
        (1, "UNKNOWN: Gloo all-reduce failed: Connection closed by peer", False),
    ],
)
def test_the_end_of_another_process_is_named(processes, text, named, monkeypatch):
    monkeypatch.setattr(cluster.jax, "process_count", lambda: processes)
    with pytest.raises(RuntimeError) as error, cluster.loss_named():
        raise cluster.jax.errors.JaxRuntimeError(text)
    lost = "another process of the run ended or cannot be reached: start all of them "
    assert str(error.value).startswith(lost) == named and text in str(error.value)
    with (
        pytest.raises(ValueError, match="^Gloo all-reduce failed"),
        cluster.loss_named(),
    ):
        raise ValueError("Gloo all-reduce failed")


def test_alone_nothing_is_joined(monkeypatch):
    for name in cluster.LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    cluster.join()
    cluster.wait("x")
    assert cluster.first()
    with cluster.in_turn("y"):
        pass
    stop = cluster.Stop()
    assert not stop.asked()
    stop.reason = "SIGTERM"
    assert stop.asked()


ROWS = """
import sys
from rm_jax import cluster, sharding
cluster.join(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), False)
for sizes in ((4, 1, 1), (2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2)):
    mesh = sharding.make_mesh(dict(zip(("data", "fsdp", "tensor"), sizes), member=1))
    for rows in (4, 8, 12, 64):
        found = sharding.local_rows(mesh, rows)
        print(*sizes, rows, found.start, found.stop)
"""


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_row_slices_are_disjoint_and_complete(n):
    """Along data and fsdp; processes that share rows (by `tensor`) hold the same."""
    address = f"127.0.0.1:{port()}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", ROWS, address, str(n), str(i)],
            env=environment(4 // n), stdout=subprocess.PIPE, text=True,
        )
        for i in range(n)
    ]  # fmt: skip
    said = [p.communicate(timeout=120)[0].splitlines() for p in running]
    said = [[line for line in own if not line.startswith("[Gloo]")] for own in said]
    assert [p.returncode for p in running] == [0] * n
    for lines_of_all in zip(*said, strict=True):
        (case,) = {tuple(line.split()[:4]) for line in lines_of_all}
        data, fsdp, _, rows = map(int, case)
        held = [range(*map(int, line.split()[4:])) for line in lines_of_all]
        parts = {(r.start, r.stop) for r in held}
        assert sorted(i for a, b in parts for i in range(a, b)) == list(range(rows))
        # As many parts as rows are cut into, or one a process where it holds several.
        assert len(parts) == min(n, data * fsdp)
    assert len(said[0]) == 20


@pytest.mark.slow
def test_damage_that_one_process_reads_passes_the_step_over_in_all(tmp_path):
    run = tmp_path / "run"
    knobs = {
        "data__cache_dir": str(tmp_path / "tokens"),
        "mesh__fsdp": 2,
        "mesh__data": 1,
        "model__d_model": 64,  # so that its arrays are cut in two
        "train__keep_last": 3,
    }
    finish(tmp_path, start(tmp_path, 2, run, **knobs), run)
    data = list((run / "checkpoints/10").glob("**/ocdbt.process_1/d/*"))
    assert data
    for path in data:
        path.write_bytes(bytes(path.stat().st_size))
    knobs["train__duration"] = "12 steps"
    said = finish(tmp_path, start(tmp_path, 2, run, **knobs), run)
    assert "damaged checkpoint of step 10" in said[0]
    assert f"continuing {run} at step 5 of 12" in said[0]
    assert lines(run)[-1]["step"] == 12
