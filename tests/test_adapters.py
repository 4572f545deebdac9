"""Training with adapters: alone, as members of one frozen trunk, over devices."""

import functools
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import rm_jax
from rm_jax import losses, sharding
from rm_jax.averaging import average_runs
from rm_jax.build import put_chunk
from rm_jax.checkpoint import Checkpoints
from rm_jax.data import pack
from rm_jax.data.loader import Loader
from rm_jax.data.order import of_one
from rm_jax.data.relabel import Relabel
from rm_jax.data.training import Training
from rm_jax.ensemble import stacked
from rm_jax.members import Members, take
from rm_jax.models import ArchConfig, functions
from rm_jax.models.lora import FROZEN
from rm_jax.optim import make_optimizer
from rm_jax.state import create, new_params, new_state, plan
from rm_jax.step import make_step, run_step
from rm_jax.train import train_together

ARCH = ArchConfig(
    vocab_size=104, d_model=8, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=4,
    d_ff=16, head_init="normal", lora_rank=2, lora_alpha=8.0,
    lora_targets=("v", "down"),
)  # fmt: skip
OPTIM = {
    "name": "adamw",
    "schedule": "constant",
    "warmup_steps": 0,
    "final_fraction": 0.1,
    "b1": 0.9,
    "b2": 0.98,
    "eps": 1e-3,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
    "lr_multipliers": ((FROZEN, 0.0), (".*", 1.0)),
    "weight_decay_multipliers": ((".*", 1.0),),
    "total_steps": 10,
    "n_pattern": 1,
}
SHAPES = pack.shapes((32,), 32 * 8, 8)
RATES, SEEDS = (0.03, 0.01), (3, 1)


@pytest.fixture
def data(toy_set):
    rng = np.random.default_rng(0)
    return toy_set(
        [(int(rng.integers(1, 12)), rng.integers(1, 8, 2).tolist()) for _ in range(48)],
        max_length=32,
    )


@functools.cache
def program(members, rates=RATES, seeds=SEEDS, nnm=0.0, mesh=(1, 1, 1, 1), arch=ARCH):
    init, apply = functions(arch)
    shapes = jax.eval_shape(init, jax.random.key(0))
    optimizers = [make_optimizer(shapes, learning_rate=r, **OPTIM) for r in rates]
    regularizers = {"lora_nnm": {"weight": nnm}} if nnm else {}
    objective = losses.choose({"name": "bt", "regularizers": regularizers})
    each = stacked if members else lambda xs: xs[0]
    n = len(rates)
    devices = sharding.make_mesh(
        dict(zip(sharding.AXES, mesh, strict=True)), jax.devices()[: np.prod(mesh)]
    )
    new = lambda: new_state(
        new_params(init, seeds, members),
        optimizers[0],
        each([objective.hparams] * n),
        ema=False,
        spike_window=4,
        dropout_seed=each([np.int32(s) for s in seeds]),
        optim_hparams=each([o.hparams for o in optimizers]),
        members=members,
    )
    _, shardings = plan(new, devices, members)
    step = make_step(
        apply, objective, optimizers[0], devices, shardings, ema_decay=0.0,
        spike_sigma=0.0, members=members,
    )  # fmt: skip
    return step, create(new, shardings), devices


def go(made, data, steps=5):
    step, state, mesh = made
    first, state = state, jax.tree.map(jnp.copy, state)
    training = Training(
        [Loader(data, SHAPES, 16, of_one(len(data), 2))],
        [Relabel()] * state.hparams["dropout_seed"].size,
        state.hparams["dropout_seed"].ndim == 1,
    )
    for i in range(steps):
        batch = training.batch_at(i)
        chunks = [put_chunk(mesh, *chunk) for chunk in batch.chunks]
        state, metrics = run_step(step, state, chunks, batch.weight)
    return jax.device_get((first.params, state, metrics))


def close(a, b, tolerance=1e-5):
    def check(x, y):
        assert np.all(np.abs(x - y) <= tolerance * np.maximum(1, np.abs(y)))

    jax.tree.map(check, a, b)


def paths(tree):
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {sharding.path_name(path): x for path, x in flat}


def trained(path):
    return path == "head" or "/lora/" in path


def test_each_member_on_one_frozen_trunk_is_its_run_alone(data):
    members = Members(2, "adapters")
    first, state, metrics = go(program(members), data)
    trunk = {p: x for p, x in paths(first).items() if not trained(p)}
    for path, x in paths(state.params).items():
        if path in trunk:
            np.testing.assert_array_equal(x, trunk[path], err_msg=path)
        else:
            assert len(x) == 2 and not np.array_equal(x, paths(first)[path]), path
    step, fresh, mesh = program(None, RATES[:1], SEEDS[:1])
    for i in range(2):
        rate = jnp.float32(RATES[i])
        optim = fresh.hparams["optim"] | {"learning_rate": rate}
        own = jax.tree.map(jnp.asarray, take(first, "adapters", i))
        alone = fresh.replace(params=own, hparams=fresh.hparams | {"optim": optim})
        _, want, numbers = go((step, alone, mesh), data)
        close(take(state.params, "adapters", i), want.params)
        close({k: v[i] for k, v in metrics.items()}, numbers)
    assert not np.allclose(*state.params["layer_1"]["attn"]["v"]["lora"]["a"])


def test_what_is_frozen_has_no_state_of_the_optimizer():
    _, state, _ = program(Members(2, "adapters"))
    kept = {p for p, x in paths(state.opt_state).items() if x.ndim > 1}
    assert kept and all("/lora/" in p or p.endswith("head") for p in kept)


@pytest.mark.parametrize(
    ("name", "shape", "want"),
    [
        ("layer_1/attn/v/lora/a", (8, 2), ("fsdp", None)),
        ("stack_0/attn/k/lora/b", (3, 2, 8), (None, "tensor")),
        ("stack_0/mlp/down/lora/a", (3, 16, 2), ("tensor", None)),
        ("layer_1/attn/o/lora/b", (2, 8), (None, "fsdp")),
        ("layer_1/mlp/up/kernel", (8, 16), ("fsdp", "tensor")),
    ],
)
def test_adapters_live_where_their_kernel_does(name, shape, want):
    sizes = dict(zip(sharding.AXES, (2, 1, 2, 2), strict=True))
    mesh = sharding.make_mesh(sizes, jax.devices()[:8])
    assert sharding.spec_of(name, shape, mesh)[-2:] == want
    found = sharding.spec_of(name, (2, *shape), mesh, members=True)
    assert found[0] == "member" and found[-2:] == want


@pytest.mark.parametrize(
    ("members", "nnm", "mesh"),
    [
        (None, 0.0, (1, 2, 2, 2)),
        pytest.param(Members(2, "adapters"), 0.1, (2, 2, 2, 1), marks=pytest.mark.slow),
    ],
)
def test_eight_devices_compute_what_one_does(data, members, nnm, mesh):
    n = members.count if members else 1
    one = program(members, RATES[:n], SEEDS[:n], nnm)
    eight = program(members, RATES[:n], SEEDS[:n], nnm, mesh)
    (_, want, numbers), (_, found, metrics) = go(one, data, 3), go(eight, data, 3)
    close(found.params, want.params)
    close(metrics, numbers)


SHORT = tiny.NO_EVAL | {"train__duration": "1 steps", "train__log_every": "1 steps"}


@pytest.fixture(scope="module")
def runs(make, tmp_path_factory):
    """A run, and an ensemble of adapters on its trunk; what the second one said."""
    folder = tmp_path_factory.mktemp("runs")
    short = SHORT | {"train__duration": "2 steps"}
    tiny.train(make(**short), folder / "base")
    config = make(
        model__init=str(folder / "base"), model__lora__rank=2, members__count=2,
        members__share="adapters", loss__name="bt", model__head__init="reset",
        loss__regularizers='{"lora_nnm": {"weight": 1.0}}', **short,
    )  # fmt: skip
    _, said = tiny.train(config, folder / "adapters")
    return folder, said


def params(run, part="params"):
    return paths(Checkpoints(f"{run}/checkpoints").restore_part(part)[0])


def test_an_ensemble_of_adapters_on_the_trunk_of_a_run(runs):
    folder, said = runs
    assert "adapters of rank 2 at q, v: new\n" in said
    assert "head linear: new, reset\n" in said and "WARNING" not in said
    base, found = params(folder / "base"), params(folder / "adapters")
    assert {p for p in found if trained(p)} == {"head"} | {
        f"layer_0/attn/{name}/lora/{part}" for name in "qv" for part in "ab"
    }
    for path, x in found.items():
        if trained(path):
            assert len(x) == 2 and not np.allclose(*x), path
        else:
            np.testing.assert_array_equal(x, base[path], err_msg=path)
    *_, line = tiny.lines(folder / "adapters")
    assert -2.0 < line["train/lora_nnm"] < -1.0  # of 4 rows, one length a row


def test_the_average_of_adapters_is_of_what_they_do_to_the_weights(
    make, runs, tmp_path
):
    folder, _ = runs
    data = make().data.eval.valid
    average_runs([str(folder / "adapters")], str(tmp_path / "mean"), data=data)
    found, of = params(tmp_path / "mean"), params(folder / "adapters", "ema")
    assert not any("lora" in path for path in found)
    path = "layer_0/attn/q"
    a, b = (np.asarray(of[f"{path}/lora/{part}"], np.float64) for part in "ab")
    change = 16.0 / 2 * np.mean(a @ b, axis=0)
    want = of[f"{path}/kernel"] + change
    np.testing.assert_allclose(found[f"{path}/kernel"], want, atol=1e-6)
    assert np.abs(change).max() > 1e-3
    assert rm_jax.load(str(tmp_path / "mean")).arch.lora_rank == 0


def test_runs_that_train_together_do_not_know_of_each_other(make, runs, tmp_path):
    folder, _ = runs
    configs = [
        make(
            model__init=str(folder / "base"), model__lora__rank=2, init_seed=i,
            loss__regularizers=json.dumps({"lora_nnm": {"weight": 1.0 + i}}), **SHORT,
        )
        for i in range(2)
    ]  # fmt: skip
    where = [str(tmp_path / f"together/{i}") for i in range(2)]
    train_together(configs, where, stream=io.StringIO())
    for i, config in enumerate(configs):
        tiny.train(config, tmp_path / f"alone/{i}")
        *_, want = tiny.lines(tmp_path / f"alone/{i}")
        *_, found = tiny.lines(where[i])
        for name in ("train/lora_nnm", "train/loss", "train/grad_norm"):
            assert found[name] == pytest.approx(want[name], rel=1e-5), name


def test_adapters_of_another_run_are_kept_or_refused(make, runs, tmp_path):
    folder, _ = runs
    one = SHORT | {"model__lora__rank": 2}
    keep = {"model__head__init": "keep"}
    config = make(model__init=str(folder / "adapters"), **one, **keep)
    with pytest.raises(rm_jax.config.ConfigError, match="is an ensemble: average it"):
        tiny.train(config, tmp_path / "a")
    _, said = tiny.train(make(**one), tmp_path / "b")
    assert "WARNING config.model.lora.rank = 2 freezes a trunk that nothing has" in said
    config = make(model__init=str(tmp_path / "b"), init_seed=5, **one, **keep)
    _, said = tiny.train(config, tmp_path / "c")
    assert f"adapters of rank 2 at q, v: kept from {tmp_path}/b\n" in said
    b, c = (params(tmp_path / name) for name in "bc")
    for path in filter(trained, b):  # one step away, and not drawn anew
        np.testing.assert_allclose(c[path], b[path], atol=0.03, err_msg=path)
    config = make(model__init=str(tmp_path / "b"), **keep)
    with pytest.raises(rm_jax.config.ConfigError, match="lora_rank: 2 -> 0"):
        tiny.train(config, tmp_path / "d")
    both = json.dumps([f"{folder}/base", f"{tmp_path}/b"])
    config = make(model__init=both, members__count=2, **one, **keep)
    with pytest.raises(rm_jax.config.ConfigError, match="b'. have adapters and the"):
        tiny.train(config, tmp_path / "e")
    config = make(optim__lr_multipliers='[["embed", 0.1], [".*", 1.0]]', **one)
    with pytest.raises(ValueError, match="'embed' is about .'embed/embedding'., which"):
        tiny.train(config, tmp_path / "f")
