import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rm_jax import backend, store
from rm_jax.checkpoint import Checkpoints, CheckpointWriter, log_event
from rm_jax.manifest import CheckpointMismatch, DamagedCheckpoint, named

# What Orbax leaves behind when a read fails half-way.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    opt: Any
    ema: Any


class Extra(NamedTuple):
    flag: Any
    none: Any


def make_state(seed=0):
    params = {
        "embed": {"embedding": jax.random.normal(jax.random.key(seed), (16, 8))},
        "head": {"kernel": jnp.ones((8, 1), jnp.bfloat16)},
    }
    opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
    return State(jnp.int32(seed), params, (opt, Extra(jnp.array([True]), None)), None)


def abstract(tree, sharding=None):
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(shape, tree)


def bits(tree):
    """The structure and, for every leaf, its shape, type and raw bytes."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
    return jax.tree.structure(tree), [(x.shape, x.dtype, x.tobytes()) for x in leaves]


def writer(folder, keep_last=2, keep_best=0, metric=None, mode="max"):
    return CheckpointWriter(
        str(folder),
        keep_last=keep_last,
        keep_best=keep_best,
        best_metrics=[metric] if metric else [],
        best_mode=mode,
    )


def save_steps(folder, steps):
    with writer(folder, keep_last=10) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"seed": step}, {"acc": step / 10})


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


def noise(seed):
    """Incompressible, so that its bytes are found as they are in a file."""
    return {"w": jax.random.bits(jax.random.key(seed), (512,), jnp.uint32)}


def find_bytes(step_folder, array):
    """The file that holds the array's bytes, and where in it."""
    raw = np.asarray(array).tobytes()
    for file in step_folder.rglob("*"):
        if file.is_file() and (at := file.read_bytes().find(raw)) >= 0:
            return file, 8 * at, 8 * len(raw)
    raise AssertionError("no file holds the array as it is")


def test_round_trip_is_bitwise(tmp_path):
    words = np.asarray([0x7FC00001, 0x7F800001, 0x80000000, 1], np.uint32)
    state = make_state(3), {"odd": jnp.asarray(words.view(np.float32)), "e": ()}
    with writer(tmp_path / "c") as checkpoints:
        checkpoints.save(3, state, {"config": {"a": [1, None]}}, {"loss": np.inf})
        checkpoints.wait()
        got, meta, step = checkpoints.restore(abstract(state))
    assert bits(got) == bits(state)
    assert (meta, step) == ({"config": {"a": [1, None]}}, 3)
    manifest = Checkpoints(str(tmp_path / "c")).manifest(3)
    assert manifest.metrics == {"loss": None}
    kernel = manifest.arrays["0/params/head/kernel"]
    assert (kernel["shape"], kernel["dtype"]) == ([8, 1], "bfloat16")


def test_the_state_may_be_donated_at_once(tmp_path):
    bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = {"w": jnp.arange(2**18, dtype=jnp.float32)}
    expected = {}
    with writer(tmp_path, keep_last=4) as checkpoints:
        for step in range(4):
            expected[step] = bits(jax.tree.map(jnp.copy, state))
            checkpoints.save(step, state, {}, {})
            state = bump(bump(state))
    for step in range(4):
        got, _, _ = checkpoints.restore(abstract(state), step)
        assert bits(got) == expected[step]


def test_8_devices_to_1_and_back(tmp_path):
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    spread, one = NamedSharding(mesh, P("x", "y")), jax.devices()[3]
    state = {"w": jax.random.normal(jax.random.key(0), (16, 8))}
    one = jax.sharding.SingleDeviceSharding(one)
    with writer(tmp_path) as checkpoints:
        checkpoints.save(1, jax.device_put(state, spread), {}, {})
        checkpoints.wait()
        got, _, _ = checkpoints.restore(abstract(state, one))
        assert got["w"].sharding == one and bits(got) == bits(state)
        checkpoints.save(2, got, {}, {})
        checkpoints.wait()
        back, _, _ = checkpoints.restore(abstract(state, spread))
    assert back["w"].sharding == spread and bits(back) == bits(state)
    arrays = [checkpoints.manifest(s).arrays for s in (1, 2)]
    assert arrays[0] == arrays[1]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"w": jnp.zeros((3, 4))}, "w: saved float32[2, 4], wanted float32[3, 4]"),
        (
            {"w": jnp.zeros((2, 4), jnp.bfloat16)},
            "w: saved float32[2, 4], wanted bfloat16[2, 4]",
        ),
        ({"v": jnp.zeros(())}, "a/v: saved nothing, wanted float32[]"),
        ({"b": None}, "a/b: saved int32[1], wanted nothing"),
        ({f"n{i}": jnp.zeros(1) for i in range(5)}, "wanted float32[1]; and 2 more"),
    ],
)
def test_mismatch_names_path_shape_and_type(tmp_path, change, words):
    base = {"w": jnp.ones((2, 4)), "b": jnp.ones(1, jnp.int32)}
    with writer(tmp_path) as checkpoints:
        checkpoints.save(0, {"a": base}, {}, {})
        checkpoints.save(1, {"a": base}, {}, {})
    events = []
    with pytest.raises(CheckpointMismatch) as error:
        checkpoints.restore(abstract({"a": base | change}), on_event=events.append)
    assert words in str(error.value) and str(tmp_path / "1") in str(error.value)
    assert events == []  # the wrong model is not a reason to fall back


def test_flips_in_every_file_are_seen_or_harmless(tmp_path):
    state, clean = make_state(5), tmp_path / "clean"
    save_steps(clean, [5])
    wanted, good = abstract(state), bits(state)
    files = [p.relative_to(clean) for p in clean.rglob("*") if p.is_file()]
    assert len(files) >= 8
    rng = np.random.default_rng(0)
    seen = {}
    for file in files:
        size = 8 * (clean / file).stat().st_size
        for bit in {0, size - 1, *rng.integers(0, max(size, 1), 6)} if size else ():
            folder = tmp_path / "hurt"
            shutil.copytree(clean, folder)
            flip(folder / file, int(bit))
            try:
                got, meta, _ = Checkpoints(str(folder)).restore(wanted, 5)
                assert bits(got) == good and meta == {"seed": 5}
            except DamagedCheckpoint as error:
                seen.setdefault(file.name, []).append(str(error))
            shutil.rmtree(folder)
    assert len(seen["data.json"]) == 8 and seen["manifest.ocdbt"]


def test_every_flip_in_the_bytes_of_an_array_is_seen(tmp_path):
    # Orbax alone returns these arrays without a word.
    state = noise(1)
    with writer(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, {})
    file, start, size = find_bytes(tmp_path / "1", state["w"])
    for bit in [0, size - 1, *range(13, size, size // 16)]:
        flip(file, start + bit)
        with pytest.raises(DamagedCheckpoint, match="w does not have the bits"):
            checkpoints.restore(abstract(state), 1)
        flip(file, start + bit)
    assert bits(checkpoints.restore(abstract(state), 1)[0]) == bits(state)


@pytest.mark.parametrize("how", ["half", "empty", "removed"])
def test_cut_or_missing_files_are_seen_or_harmless(tmp_path, how):
    state, clean = make_state(5), tmp_path / "clean"
    save_steps(clean, [5])
    for file in [p.relative_to(clean) for p in clean.rglob("*") if p.is_file()]:
        folder = tmp_path / "hurt"
        shutil.copytree(clean, folder)
        if how == "removed":
            (folder / file).unlink()
        else:
            size = (folder / file).stat().st_size
            os.truncate(folder / file, size // 2 if how == "half" else 0)
        try:
            got, _, _ = Checkpoints(str(folder)).restore(abstract(state), 5)
            assert bits(got) == bits(state)
        except DamagedCheckpoint:
            pass
        shutil.rmtree(folder)


def test_an_array_that_orbax_passes_over_is_missed(tmp_path):
    state = {"v": noise(2)["w"]} | noise(1)
    with writer(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, {})
    file = tmp_path / "1" / "state" / "_METADATA"
    text, old = file.read_text(), '"key": "v"'
    assert old in text
    file.write_text(text.replace(old, '"key": "u"'))
    with pytest.raises(DamagedCheckpoint, match="1: v was not read"):
        checkpoints.restore(abstract(state), 1)


def test_works_where_implicit_transfers_are_forbidden(tmp_path):
    state = noise(1)
    with jax.transfer_guard("disallow"), writer(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, {})
        checkpoints.wait()
        got, _, _ = checkpoints.restore(abstract(state))
    assert bits(got) == bits(state)


def test_damaged_steps_fall_back_loudly_and_are_set_aside(tmp_path, caplog):
    with writer(tmp_path, keep_last=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, noise(step), {"seed": step}, {})
    file, start, _ = find_bytes(tmp_path / "3", noise(3)["w"])
    flip(file, start)
    (tmp_path / "2" / backend.MANIFEST_FILE).unlink()
    events, wanted = [], abstract(noise(0))
    with writer(tmp_path, keep_last=2) as checkpoints:
        state, meta, step = checkpoints.restore(wanted, on_event=events.append)
        assert bits(state) == bits(noise(1)) and (meta, step) == ({"seed": 1}, 1)
        assert [(e["event"], e["step"]) for e in events] == [
            ("damaged_checkpoint", 3),
            ("damaged_checkpoint", 2),
        ]
        assert "3: w does not have the bits" in events[0]["why"]
        assert "2/manifest/data.json" in events[1]["why"]
        log_event(events[0])
        assert "damaged_checkpoint: step 3" in caplog.text
        # Step 2 comes round again; the damaged 2 and 3 must not push out step 1.
        checkpoints.save(2, noise(2), {}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]
        assert store.listdir(str(tmp_path)) == ["1", "2", "2.damaged", "3.damaged"]
        assert checkpoints.restore(wanted)[2] == 2


def test_reading_alone_changes_nothing(tmp_path):
    save_steps(tmp_path, [1, 2])
    flip(tmp_path / "2" / backend.MANIFEST_FILE, 9)
    (tmp_path / f"3{backend.UNFINISHED}").mkdir()
    before = store.walk(str(tmp_path))
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.restore(abstract(make_state()))[2] == 1
    assert checkpoints.best_step("acc", "max") == 1
    assert store.walk(str(tmp_path)) == before and checkpoints.steps() == [1, 2]
    assert (tmp_path / f"3{backend.UNFINISHED}").is_dir()


def test_explicit_or_only_damage_raises(tmp_path):
    save_steps(tmp_path, [1, 2])
    for step in (1, 2):
        flip(tmp_path / str(step) / backend.MANIFEST_FILE, 9)
    checkpoints, wanted = Checkpoints(str(tmp_path)), abstract(make_state())
    with pytest.raises(DamagedCheckpoint, match="2/manifest"):
        checkpoints.restore(wanted, 2)
    with pytest.raises(DamagedCheckpoint, match="every .*step 2: .*step 1: "):
        checkpoints.restore(wanted, on_event=lambda _: None)
    with pytest.raises(FileNotFoundError, match=r"no step 7; there are \[1, 2\]"):
        checkpoints.manifest(7)
    empty = Checkpoints(str(tmp_path / "none"))
    assert (empty.steps(), empty.latest(), empty.best_step("acc", "max")) == (
        [],
        None,
        None,
    )
    with pytest.raises(FileNotFoundError, match="none: no checkpoint here"):
        empty.restore(wanted)


def test_a_copied_step_is_not_taken_for_another(tmp_path):
    save_steps(tmp_path, [1])
    shutil.copytree(tmp_path / "1", tmp_path / "4")
    with pytest.raises(DamagedCheckpoint, match="is of step 1, not 4"):
        Checkpoints(str(tmp_path)).manifest(4)


def test_retention_keeps_last_and_best_across_restarts(tmp_path):
    state, kept = {"w": jnp.ones(3)}, []
    scores = [0.5, 0.9, None, 0.9, 0.7, float("nan"), 0.6]
    for step, score in enumerate(scores):
        # Opened anew each time: what was best must be known from the disk alone.
        with writer(tmp_path, 2, 2, "acc") as checkpoints:
            checkpoints.save(step, state, {}, {} if score is None else {"acc": score})
        kept.append(checkpoints.steps())
    assert kept == [
        [0],
        [0, 1],
        [0, 1, 2],
        [1, 2, 3],
        [1, 3, 4],
        [1, 3, 4, 5],
        [1, 3, 5, 6],
    ]
    assert checkpoints.best_step("acc", "max") == 1
    assert checkpoints.best_step("acc", "min") == 6
    assert checkpoints.latest() == 6


def test_retention_by_the_smallest(tmp_path):
    with writer(tmp_path, 1, 1, "loss", "min") as checkpoints:
        for step, loss in enumerate([3.0, 1.0, 2.0, 5.0]):
            checkpoints.save(step, {"w": jnp.ones(3)}, {}, {"loss": loss})
    assert checkpoints.steps() == [1, 3]


def test_a_step_whose_manifest_is_damaged_is_not_deleted(tmp_path):
    save_steps(tmp_path, [1])
    flip(tmp_path / "1" / backend.MANIFEST_FILE, 9)
    with writer(tmp_path, 1, 1, "acc") as checkpoints:
        for step in (2, 3):
            checkpoints.save(step, {"w": jnp.ones(3)}, {}, {"acc": 0.1})
    assert checkpoints.steps() == [1, 2, 3]


def test_restore_part_reads_only_that_part(tmp_path):
    state = make_state(4)
    with writer(tmp_path) as checkpoints:
        checkpoints.save(4, state, {"a": 1}, {})
    params, meta, step = checkpoints.restore_part("params")
    assert bits(params) == bits(state.params) and (meta, step) == ({"a": 1}, 4)
    spread = NamedSharding(jax.make_mesh((8,), ("x",)), P("x"))
    got, _, _ = checkpoints.restore_part(
        "params", named(abstract(state.params, spread))[0], 4
    )
    assert bits(got) == bits(params)
    assert got["embed"]["embedding"].sharding == spread
    assert bits(checkpoints.restore_part("step")[0]) == bits(state.step)
    with pytest.raises(CheckpointMismatch, match=r"'ema'; it has \['opt', 'params'"):
        checkpoints.restore_part("ema")
    other = {"embed/embedding": jax.ShapeDtypeStruct((3,), np.float32, sharding=spread)}
    got, _, _ = checkpoints.restore_part("params", other)  # of another shape: as saved
    assert bits(got) == bits(params)


def test_save_refuses(tmp_path):
    state = {"w": jnp.ones(3)}
    with writer(tmp_path, 2, 1, "acc") as checkpoints:
        checkpoints.save(5, state, {}, {"acc": 1})
        for step in (4, 5):
            with pytest.raises(ValueError, match=f"step {step} after step 5"):
                checkpoints.save(step, state, {}, {"acc": 1})
        want = r"none of the best metrics \['acc'\] is measured.*\['ac'\]"
        with pytest.raises(ValueError, match=want):
            checkpoints.save(6, state, {}, {"ac": 1})
        for meta in ({"a": (1,)}, {1: 1}, {"a": float("nan")}, {"a": state}):
            with pytest.raises(ValueError, match="meta is not JSON"):
                checkpoints.save(6, state, meta, {})
        with pytest.raises(TypeError, match="n is ndarray; want a jax array"):
            checkpoints.save(6, {"n": np.ones(3)}, {}, {})
        with pytest.raises(ValueError, match="the path 'a/b'"):
            checkpoints.save(6, {"a/b": state["w"], "a": {"b": state["w"]}}, {}, {})
    assert checkpoints.steps() == [5]


def test_a_failed_save_is_told_with_its_folder(tmp_path, monkeypatch):
    def broken(*_):
        def finish():
            raise RuntimeError("disk full")

        return finish

    checkpoints = writer(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(backend, "start_save", broken)
        checkpoints.save(1, {"w": jnp.ones(3)}, {}, {})
    with pytest.raises(OSError, match="/1: cannot save: disk full"):
        checkpoints.save(2, {"w": jnp.ones(3)}, {}, {})
    checkpoints.save(2, {"w": jnp.ones(3)}, {}, {})
    checkpoints.close()
    assert checkpoints.steps() == [2]


@pytest.mark.parametrize(
    "words, args",
    [
        ("keep_last is 0", {"keep_last": 0}),
        ("keep_best is -1", {"keep_best": -1}),
        ("there is no best metric", {"keep_best": 1}),
        ("best_mode is 'high'", {"mode": "high"}),
    ],
)
def test_bad_settings(tmp_path, words, args):
    with pytest.raises(ValueError, match=words):
        writer(tmp_path / "c", **args)
    assert not (tmp_path / "c").exists()


KILLED = """
import os, signal, sys
import jax, jax.numpy as jnp
from rm_jax import backend, store
from rm_jax.checkpoint import CheckpointWriter

folder = sys.argv[1]
checkpoints = CheckpointWriter(
    folder, keep_last=2, keep_best=0, best_metrics=(), best_mode="max")
checkpoints.save(1, {"w": jnp.ones(3)}, {"n": 1}, {})
checkpoints.wait()
state = {"w": jax.random.normal(jax.random.key(0), (2**24,))}
checkpoints.save(2, state, {"n": 2}, {})
while not any(backend.UNFINISHED in name for name in store.listdir(folder)):
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_during_a_save(tmp_path):
    root = pathlib.Path(__file__).parent.parent
    env = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=env)
    assert done.returncode == -signal.SIGKILL
    left = [n for n in store.listdir(str(tmp_path)) if backend.UNFINISHED in n]
    assert left and Checkpoints(str(tmp_path)).steps() == [1]
    state, wanted = {"w": jnp.ones(3)}, abstract({"w": jnp.ones(3)})
    with writer(tmp_path) as checkpoints:
        assert store.listdir(str(tmp_path)) == ["1"]
        got, meta, step = checkpoints.restore(wanted)
        assert (bits(got), meta, step) == (bits(state), {"n": 1}, 1)
        checkpoints.save(2, state, {"n": 2}, {})
    assert checkpoints.restore(wanted)[1:] == ({"n": 2}, 2)


def test_a_kill_during_deletion_leaves_no_half_step(tmp_path, monkeypatch):
    save_steps(tmp_path, [1])

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "remove_tree", killed)
        checkpoints = writer(tmp_path, keep_last=1)
        checkpoints.save(2, make_state(2), {}, {})
        with pytest.raises(KeyboardInterrupt):
            checkpoints.wait()
    assert checkpoints.steps() == [2]
    assert store.listdir(str(tmp_path)) == ["1.deleted", "2"]
    writer(tmp_path)
    assert store.listdir(str(tmp_path)) == ["2"]


def test_the_manifest_is_plain_json(tmp_path):
    save_steps(tmp_path, [3])
    value = json.loads((tmp_path / "3" / backend.MANIFEST_FILE).read_text())
    assert sorted(value) == [
        "arrays", "meta", "metrics", "schema_version", "sha256", "step",
    ]  # fmt: skip
    assert value["metrics"] == {"acc": 0.3}


def test_a_kill_before_the_deletion_is_made_good_at_the_end(tmp_path):
    with writer(tmp_path, keep_last=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, noise(step), {}, {})
    wanted = abstract(noise(0))
    with writer(tmp_path, keep_last=1) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]  # nothing was read: they may be needed
    with writer(tmp_path, keep_last=1) as checkpoints:
        assert checkpoints.restore(wanted)[2] == 3
    assert checkpoints.steps() == [3]


def test_old_steps_stay_where_the_last_is_damaged(tmp_path):
    save_steps(tmp_path, [1, 2])
    for file in (tmp_path / "2" / "state" / "d").iterdir():
        file.write_bytes(b"")
    with writer(tmp_path, keep_last=1) as checkpoints:
        assert checkpoints.restore(abstract(make_state()))[2] == 1
    assert store.listdir(str(tmp_path)) == ["1", "2"]
