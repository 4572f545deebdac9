"""Members: each independent one is its run alone; heads on one trunk add up."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax import losses, sharding
from rm_jax.build import put_chunk
from rm_jax.data import pack
from rm_jax.data.loader import Loader
from rm_jax.data.order import of_one
from rm_jax.data.relabel import Relabel
from rm_jax.data.training import Training, blank, side_by_side
from rm_jax.ensemble import stacked
from rm_jax.members import Members, axes, lift, stack, take
from rm_jax.models import ArchConfig, functions
from rm_jax.optim import make_optimizer
from rm_jax.state import create, new_params, new_state, plan
from rm_jax.step import make_score, make_step, run_step

ARCH = ArchConfig(
    vocab_size=97, d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=16,
    head_init="normal",
)  # fmt: skip
SGD = {
    "name": "sgd",
    "schedule": "constant",
    "warmup_steps": 0,
    "final_fraction": 0.1,
    "b1": 0.5,
    "b2": 0.98,
    "eps": 1e-8,
    "weight_decay": 0.0,
    "clip_norm": 1.0,
    "lr_multipliers": ((".*", 1.0),),
    "weight_decay_multipliers": ((".*", 1.0),),
    "total_steps": 10,
    "n_pattern": 1,
}
RATES, SEEDS = (0.2, 0.05, 0.1, 0.3), (3, 1, 4, 1)
SHAPES = pack.shapes((32,), 32 * 8, 8)
CENTER = {"name": "bradley_terry", "regularizers": {"center": {"weight": 0.1}}}


@pytest.fixture
def data(toy_set):
    rng = np.random.default_rng(0)
    return toy_set(
        [(int(rng.integers(1, 12)), rng.integers(1, 8, 2).tolist()) for _ in range(48)],
        max_length=32,
    )


@functools.cache
def program(members, rates=RATES, seeds=SEEDS, loss="bradley_terry", mesh=(1, 1, 1, 1)):
    """The programs of a step, and the state before it; members None is the first."""
    init, apply = functions(ARCH)
    shapes = jax.eval_shape(init, jax.random.key(0))
    optimizers = [make_optimizer(shapes, learning_rate=r, **SGD) for r in rates]
    objective = losses.choose(CENTER | {"name": loss})
    apart = members is not None and members.independent
    each = (lambda xs: stacked(xs)) if apart else (lambda xs: xs[0])
    n = len(rates)
    devices = sharding.make_mesh(
        dict(zip(sharding.AXES, mesh, strict=True)), jax.devices()[: np.prod(mesh)]
    )
    new = lambda: new_state(
        new_params(init, seeds, members),
        optimizers[0],
        each([objective.hparams] * n),
        ema=True,
        spike_window=4,
        dropout_seed=each([np.int32(0)] * n),
        optim_hparams=each([o.hparams for o in optimizers]),
        members=members,
    )
    _, shardings = plan(new, devices, members)
    step = make_step(
        apply, objective, optimizers[0], devices, shardings, ema_decay=0.5,
        spike_sigma=0.0, members=members,
    )  # fmt: skip
    score = make_score(apply, devices, shardings.params, members)
    return step, create(new, shardings), devices, score


def go(made, training, steps=10):
    """Parameters, averages and the last metrics after some steps."""
    step, state, mesh, _ = made
    state = jax.tree.map(jnp.copy, state)
    for i in range(steps):
        batch = training.batch_at(i)
        chunks = [put_chunk(mesh, *chunk) for chunk in batch.chunks]
        state, metrics = run_step(step, state, chunks, batch.weight)
    return jax.device_get((state, metrics))


def loader(data, seed=2):
    return Loader(data, SHAPES, 16, of_one(len(data), seed))


def close(a, b, tolerance=1e-5):
    def check(x, y):
        assert np.all(np.abs(x - y) <= tolerance * np.maximum(1, np.abs(y)))

    jax.tree.map(check, a, b)


@pytest.mark.parametrize(("own", "at_once"), [(False, 0), (True, 2)])
def test_each_member_is_its_run_alone(data, own, at_once):
    hows = [Relabel(0.1 * i, 0, "poisson", i) for i in range(4)]
    members = Members(4, "none", at_once, own)
    loaders = [loader(data, seed) for seed in (range(4) if own else [2])]
    state, metrics = go(program(members), Training(loaders, hows, True))
    for i in range(4):
        alone = program(None, RATES[i : i + 1], SEEDS[i : i + 1])
        training = Training([loaders[i if own else 0]], hows[i : i + 1], False)
        want, numbers = go(alone, training)
        close(take(state.params, "none", i), want.params)
        close(take(state.ema, "none", i), want.ema)
        close({k: v[i] for k, v in metrics.items()}, numbers)
    assert np.ptp(metrics["loss"]) > 1e-3


@pytest.mark.parametrize("share", ["none", "trunk"])
def test_one_member_is_the_single_model(data, share):
    training = lambda members: Training([loader(data)], [Relabel()], members)
    state, metrics = go(
        program(Members(1, share), RATES[:1], SEEDS[:1]), training(True)
    )
    want, numbers = go(program(None, RATES[:1], SEEDS[:1]), training(False))
    close(take(state.params, share, 0), want.params)
    close({k: np.reshape(v, ()) for k, v in metrics.items()}, numbers)


def gradient(made, training):
    step, state, mesh, _ = made
    batch, total = training.batch_at(0), step.zeros(state)
    weight = np.float32(batch.weight)
    for i, chunk in enumerate(batch.chunks):
        own = put_chunk(mesh, *chunk)
        total, _ = step.gradient(state, total, *own, i, weight, None)
    return jax.device_get(total)


def test_a_shared_trunk_takes_the_mean_of_what_its_heads_ask(data):
    made = program(Members(2, "trunk"), RATES[:1] * 2, SEEDS[:2])
    hows = [Relabel(bootstrap="poisson", bootstrap_seed=i) for i in (0, 1)]
    both = gradient(made, Training([loader(data)], hows, True))
    state = made[1]
    assert not np.allclose(*state.params["head"])
    alone = []
    for i in (0, 1):
        step, fresh, mesh, score = program(None, RATES[:1], SEEDS[:1])
        one = fresh.replace(params=take(state.params, "trunk", i))
        training = Training([loader(data)], hows[i : i + 1], False)
        alone.append(gradient((step, one, mesh, score), training).grads)
    close(both.grads["head"], np.stack([g.pop("head") for g in alone]) / 2, 1e-6)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *alone)
    both.grads.pop("head")
    close(both.grads, mean, 1e-6)
    assert max(np.abs(g).max() for g in jax.tree.leaves(mean)) > 1e-3


@pytest.mark.parametrize(
    ("share", "mesh"),
    [
        ("none", (4, 2, 1, 1)),
        pytest.param("none", (2, 2, 2, 1), marks=pytest.mark.slow),
        pytest.param("trunk", (2, 2, 2, 1), marks=pytest.mark.slow),
    ],
)
def test_members_over_devices_compute_what_one_does(data, share, mesh):
    hows = [Relabel(bootstrap="poisson", bootstrap_seed=i) for i in range(4)]
    training = Training([loader(data)], hows, True)
    want = go(program(Members(4, share)), training, 3)
    found = go(program(Members(4, share), mesh=mesh), training, 3)
    close(found[0].params, want[0].params)
    close(found[1], want[1])


def test_scores_of_members_are_those_of_each(data):
    _, state, mesh, score = program(Members(4))
    batch, labels = put_chunk(mesh, *loader(data).batch_at(0).chunks[0])
    found = np.asarray(score(state.params, batch, labels))
    assert found.shape == (4, *labels.ranks.shape)
    one = program(None, RATES[:1], SEEDS[:1])[3]
    for i in range(4):
        close(found[i], np.asarray(one(take(state.params, "none", i), batch, labels)))


def test_a_nan_freezes_only_its_member(data):
    made = program(Members(4))
    step, state, mesh, score = made
    bad = np.ones((4, 1), np.float32)
    bad[2] = np.nan
    params = state.params | {"head": state.params["head"] * bad}
    training = Training([loader(data)], [Relabel()] * 4, True)
    spoilt = (step, state.replace(params=params), mesh, score)
    found, metrics = go(spoilt, training, 3)
    want, numbers = go(made, training, 3)
    assert metrics["skips"].tolist() == [0, 0, 3, 0]
    assert metrics["skips_in_row"].tolist() == [0, 0, 3, 0]
    for i in (0, 1, 3):
        close(take(found.params, "none", i), take(want.params, "none", i), 0)
        assert metrics["loss"][i] == numbers["loss"][i]
    head = found.params.pop("head")
    assert np.isnan(head[2]).all()
    first = take(jax.device_get(state.params), "none", 2)
    first.pop("head")
    close(take(found.params, "none", 2), first, 0)


def test_which_parameters_a_member_owns():
    params = {
        "embed": {"embedding": 1},
        "layer_0": {"attn": {"q": {"kernel": 2, "lora": {"a": 3, "b": 4}}}},
        "head": {"kernel": 5},
        "lm_head": 6,
    }

    def own(share):
        keep = lambda axis, value: value if axis == 0 else None
        which = axes(params, share)
        kept = jax.tree.map(keep, which, params, is_leaf=lambda x: x is None)
        return set(jax.tree.leaves(kept))

    assert own("none") == {1, 2, 3, 4, 5, 6}
    assert own("adapters") == {3, 4, 5} and own("trunk") == {5}


def test_stack_and_take_undo_each_other():
    each = [{"head": np.full(2, i), "trunk": np.zeros(3)} for i in range(3)]
    for share in ("none", "trunk"):
        whole = stack(each, share)
        assert whole["head"].shape == (3, 2)
        assert whole["trunk"].shape == ((3, 3) if share == "none" else (3,))
        for i in range(3):
            close(take(whole, share, i), each[i], 0)


@pytest.mark.parametrize("at_once", [0, 1, 2, 3, 6])
def test_lift_in_turns_is_lift_at_once(at_once):
    f = lambda a, b, c, none: ({"x": a["x"] * b, "c": c["y"] + b}, a["x"].sum())
    args = ({"x": jnp.arange(12.0).reshape(6, 2)}, jnp.arange(6.0), {"y": 2.0}, None)
    found, total = lift(Members(6, "none", at_once), f, (0, 0, None, None), turns=True)(
        *args
    )
    want = np.arange(12).reshape(6, 2) * np.arange(6)[:, None]
    np.testing.assert_array_equal(found["x"], want)
    np.testing.assert_array_equal(found["c"], 2 + np.arange(6))
    np.testing.assert_array_equal(total, np.arange(12).reshape(6, 2).sum(1))
    assert lift(None, f, ()) is f


def test_batches_side_by_side_hold_what_each_holds(data):
    small = pack.shapes((32,), 32 * 2, 8)
    loaders = [Loader(data, small, 16, of_one(len(data), seed)) for seed in range(3)]
    batches = [own.batch_at(0) for own in loaders]
    batches[1] = batches[1]._replace(
        chunks=batches[1].chunks[:1], shapes=batches[1].shapes[:1]
    )
    both = side_by_side(batches)
    assert both.weight.tolist() == [16, 16, 16]
    assert len(both.chunks) == max(len(b.chunks) for b in batches) > 1
    for i, batch in enumerate(batches):
        for n, (rows, labels) in enumerate(both.chunks):
            want = batch.chunks[n] if n < len(batch.chunks) else blank(batch.chunks[0])
            for found, part in zip((rows, labels), want, strict=True):
                for x, y in zip(found, part, strict=True):
                    np.testing.assert_array_equal(x[i], y)
    empty, labels = blank(batches[0].chunks[0])
    assert (empty.slot_ids == -1).all() and (labels.ids == -1).all()
    assert labels.weight.sum() == 0 and not empty.segments.any()
