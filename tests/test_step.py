"""The step: packed = padded, many chunks = one, what is skipped stays untouched."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax import losses, sharding
from rm_jax.build import put_chunk
from rm_jax.data import pack
from rm_jax.data.loader import Loader
from rm_jax.data.order import of_one
from rm_jax.losses import LOSSES, REGULARIZERS, Regularizer
from rm_jax.models import ArchConfig, functions
from rm_jax.models.reward import scatter
from rm_jax.optim import make_optimizer
from rm_jax.state import Guard, create, new_state, plan
from rm_jax.step import OF_SOURCE, judge, make_step, preference_sums, run_step
from rm_jax.types import Labels, RewardOutput

BIG = pack.shapes((32,), 32 * 32, 4)
SMALL = pack.shapes((16, 32), 64, 4)
SGD = {
    "name": "sgd",
    "learning_rate": 0.1,
    "schedule": "constant",
    "warmup_steps": 0,
    "final_fraction": 0.1,
    "b1": 0.0,
    "b2": 0.98,
    "eps": 1e-8,
    "weight_decay": 0.0,
    "clip_norm": 0.0,
    "lr_multipliers": ((".*", 1.0),),
    "weight_decay_multipliers": ((".*", 1.0),),
    "total_steps": 10,
}
BAD = 96  # token id that breaks the toy model


def toy(params, batch, examples, responses, key, reference_logp=None):
    """score = value of the scored token * scale of its position."""
    tokens = jnp.take_along_axis(batch.tokens, batch.slots, axis=1)
    place = jnp.take_along_axis(batch.positions, batch.slots, axis=1)
    slots = params["embed"]["table"][tokens] * jnp.cos(
        place * params["layer_0"]["speed"][0]
    )
    slots += params["layer_1"]["offset"][0] * place
    # The root of 0 is 0, and its gradient is not finite.
    bad = (tokens == BAD) & (batch.slot_ids[..., 0] >= 0)
    slots += jnp.sqrt(jnp.where(bad, params["layer_1"]["zero"][0], 1.0)) - 1.0 * ~bad
    return RewardOutput(scatter(slots, batch, examples, responses), {}, None)


def toy_params(key=None):
    table = jnp.sin(jnp.arange(97, dtype=jnp.float32) * 7)
    return {
        "embed": {"table": table},
        "layer_0": {"speed": jnp.full((1,), 0.3)},
        "layer_1": {"offset": jnp.full((1,), 0.02), "zero": jnp.zeros((1,))},
    }


class Run(NamedTuple):
    """A step's programs, its first state and where things live."""

    step: object
    state: object
    mesh: object


def start(
    apply=toy,
    params=toy_params,
    loss=None,
    ema=0.0,
    sigma=0.0,
    window=4,
    regularizers=REGULARIZERS,
    known=LOSSES,
    pattern=1,
    sources=(),
    **optim,
):
    loss = {"name": "bradley_terry"} | (loss or {})
    objective = losses.choose(loss, known, regularizers)
    mesh = sharding.make_mesh(
        {"member": 1, "data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1]
    )
    optimizer = make_optimizer(params(), n_pattern=pattern, **(SGD | optim))
    new = lambda: new_state(params(), optimizer, objective.hparams, ema > 0, window)
    _, shardings = plan(new, mesh)
    step = make_step(
        apply, objective, optimizer, mesh, shardings,
        ema_decay=ema, spike_sigma=sigma, sources=sources,
    )  # fmt: skip
    return Run(step, create(new, shardings), mesh)


def put(run, batch):
    return [put_chunk(run.mesh, *chunk) for chunk in batch.chunks]


def one_step(run, state, batch, weight=None):
    """The next state and the metrics as numbers; `state` can be used again."""
    copy = jax.tree.map(jnp.copy, state)
    weight = batch.weight if weight is None else weight
    state, metrics = run_step(run.step, copy, put(run, batch), weight)
    return state, {k: float(v) for k, v in metrics.items()}


def gradient(run, batch):
    """Gradient of the first step's loss, and its (sum, count) metrics."""
    slope, total = None, run.step.zeros(run.state)
    chunks = put(run, batch)
    if run.step.sums is not None:
        sums = None
        for i, chunk in enumerate(chunks):
            sums = run.step.sums(run.state, *chunk, i, sums)
        slope, _ = run.step.weigh(run.state, sums)
    for i, chunk in enumerate(chunks):
        weight = jnp.float32(batch.weight)
        total, _ = run.step.gradient(run.state, total, *chunk, i, weight, slope)
    return total


def close(a, b, tolerance=1e-6):
    def check(x, y):
        x, y = np.asarray(x), np.asarray(y)
        assert np.all(np.abs(x - y) <= tolerance * np.maximum(1, np.abs(y)))

    jax.tree.map(check, a, b)


def same(a, b):
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b
    )


def without(metrics, *names):
    return {k: v for k, v in metrics.items() if k not in names}


@pytest.fixture
def data(toy_set):
    rng = np.random.default_rng(0)
    return toy_set(
        [
            (int(rng.integers(1, 12)), rng.integers(1, 8, k).tolist())
            for k in [2] * 8 + [3, 4, 2, 2]
        ],
        max_length=32,
    )


def longer(batch):
    """Lengths as of real responses: those of a few tokens leave few digits."""
    grow = lambda labels: labels._replace(lengths=labels.lengths * 40)
    return batch._replace(chunks=tuple((x, grow(y)) for x, y in batch.chunks))


def weighted(data, weights):
    weights = np.asarray(weights, np.float32)
    return dataclasses.replace(data, arrays={**data.arrays, "weight": weights})


ARCH = ArchConfig(
    vocab_size=97, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8,
    d_ff=24, attention_block=16, head_init="normal",
)  # fmt: skip


def test_a_packed_step_is_the_padded_step(toy_set, fresh_params):
    rng = np.random.default_rng(1)
    data = toy_set(
        [
            (int(rng.integers(1, 20)), rng.integers(1, 12, k).tolist())
            for k in (2, 2, 3, 2, 5, 2, 2, 4, 2, 2)
        ],
        max_length=32,
    )
    params = lambda: fresh_params(ARCH)
    begin = functools.partial(start, params=params, learning_rate=0.2)
    dense = dataclasses.replace(ARCH, attention_block=128)
    packed = begin(functions(ARCH)[1]), Loader(data, SMALL[1:], 6, of_one(len(data), 5))
    shape = pack.shapes((32,), 32 * 24, 4)  # 24 rows of one response
    padded = (
        begin(functions(dense)[1]),
        Loader(data, shape, 6, of_one(len(data), 5), layout="padded"),
    )
    batches = [loader.batch_at(0) for _, loader in (packed, padded)]
    assert len(batches[0].chunks) > 1 and batches[0].tokens < batches[1].tokens
    a, b = (gradient(r, x) for (r, _), x in zip((packed, padded), batches, strict=True))
    assert max(np.abs(g).max() for g in jax.tree.leaves(b.grads)) > 0.01
    close(a.grads, b.grads, 1e-5)
    close(a.sums, b.sums, 1e-5)
    states = []
    for run, loader in (packed, padded):
        state = run.state
        for i in range(10):
            batch = loader.batch_at(i)
            state, metrics = run_step(run.step, state, put(run, batch), batch.weight)
        states.append((state.params, metrics["loss"]))
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), states[0][0], params())
    assert min(jax.tree.leaves(moved)) > 1e-3  # ten steps that went somewhere
    close(states[0], states[1], 1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"margin": 0.3, "regularizers": {"center": {"weight": 0.1}}},
        {"regularizers": {"length_correlation": {"weight": 0.7}}},
    ],
    ids=str,
)
def test_many_chunks_are_one(data, loss):
    data = weighted(data, [1, 2, 0, 0.5, 1, 1, 3, 1, 1, 0.1, 1, 1])
    run = start(loss=loss, weight_decay=0.01)
    loaders = [
        Loader(data, shapes, 12, of_one(len(data), 1)) for shapes in (BIG, SMALL)
    ]
    batches = [longer(loader.batch_at(0)) for loader in loaders]
    assert [len(b.chunks) > 1 for b in batches] == [False, True]
    a, b = (gradient(run, batch) for batch in batches)
    close(a.grads, b.grads)
    close(a.sums, b.sums)
    (one, first), (many, second) = (one_step(run, run.state, x) for x in batches)
    close(one.params, many.params)
    close(first, second)
    assert set(loss.get("regularizers", ())) <= set(first)


def test_the_loss_is_the_weighted_mean_by_hand(data):
    weights = np.array([1, 2, 0, 0.5, 1, 1, 3, 1, 1, 0.1, 1, 1], np.float32)
    run = start(loss={"regularizers": {"score_l2": {"weight": 0.1}}})
    batch = Loader(weighted(data, weights), SMALL, 12).batch_at(0)
    _, metrics = one_step(run, run.state, batch)
    total = l2 = 0.0
    for chunk, labels in batch.chunks:
        scores = np.asarray(toy(toy_params(), chunk, *labels.ranks.shape, None).scores)
        for e in np.flatnonzero(labels.ids >= 0):
            s = [scores[e, k] for k in range(labels.present[e].sum())]
            order = np.argsort(labels.ranks[e, : len(s)])
            pairs = [
                np.log1p(np.exp(s[j] - s[i]))
                for n, i in enumerate(order)
                for j in order[n + 1 :]
            ]
            total += labels.weight[e] * np.mean(pairs)
            l2 += labels.weight[e] * 0.1 * np.mean(np.square(s))
    want = (total + l2) / weights.sum()
    assert metrics["loss"] == pytest.approx(want, rel=1e-5)
    assert metrics["score_l2"] == pytest.approx(l2 / weights.sum(), rel=1e-5)
    assert metrics["nll"] == pytest.approx(total / weights.sum(), rel=1e-5)


def test_length_correlation_is_that_of_the_whole_step(data):
    run = start(loss={"regularizers": {"length_correlation": {"weight": 1.0}}})
    batch = longer(Loader(data, SMALL, 12).batch_at(0))
    _, metrics = one_step(run, run.state, batch)
    pairs = []
    for chunk, labels in batch.chunks:
        scores = np.asarray(toy(toy_params(), chunk, *labels.ranks.shape, None).scores)
        there = labels.present > 0
        pairs += zip(scores[there], labels.lengths[there], strict=True)
    rho = np.corrcoef(np.array(pairs).T)[0, 1]
    assert metrics["length_correlation"] == pytest.approx(abs(rho), abs=3e-5)
    plain, without_it = start(), one_step(start(), start().state, batch)[1]
    assert metrics["loss"] == pytest.approx(without_it["loss"] + abs(rho), abs=3e-5)
    # The gradient is that of |rho|: a small step along it lowers it at that rate.
    extra = jax.tree.map(
        jnp.subtract, gradient(run, batch).grads, gradient(plain, batch).grads
    )
    norm = sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(extra))
    move = 1e-3 / norm
    params = jax.tree.map(lambda p, g: p - move * g, run.state.params, extra)
    _, after = one_step(run, run.state.replace(params=params), batch)
    fall = metrics["length_correlation"] - after["length_correlation"]
    assert fall == pytest.approx(1e-3, rel=0.1)


class Pull(NamedTuple):
    """Knobs of the plug-in below."""

    weight: float
    to: float


def pull(params, hparams: Pull):
    return jnp.sum((params["layer_0"]["speed"] - hparams.to) ** 2)


def test_a_plugged_in_regularizer_of_the_parameters(data):
    known = REGULARIZERS | {"pull": Regularizer(params=pull)}
    loss = {"regularizers": {"pull": {"weight": 0.5, "to": 0.1}}}
    with_it, plain = start(loss=loss, regularizers=known), start()
    for shapes in (BIG, SMALL):  # once a step, however many chunks
        batch = Loader(data, shapes, 12).batch_at(0)
        a, first = one_step(with_it, with_it.state, batch)
        b, second = one_step(plain, plain.state, batch)
        # d/dp 0.5 (p - 0.1)^2 at 0.3 is 0.2; the learning rate is 0.1.
        moved = a.params["layer_0"]["speed"] - b.params["layer_0"]["speed"]
        np.testing.assert_allclose(moved, -0.02, rtol=1e-4)
        same(a.params["embed"], b.params["embed"])
        assert first["pull"] == pytest.approx(0.02, rel=1e-5)
        assert first["loss"] == pytest.approx(second["loss"] + 0.02, rel=1e-5)


def test_weight_0_is_absent_and_weight_2_is_twice(data, toy_set):
    run = start()
    eight = Loader(weighted(data, [1] * 8 + [0] * 4), SMALL, 12).batch_at(0)
    a, first = one_step(run, run.state, eight)
    # The same eight alone: an order in which they are one step of eight.
    (alone,) = Loader(data, SMALL, 8).in_order(limit=8)
    b, second = one_step(run, run.state, alone)
    assert eight.weight == alone.weight == 8.0
    close(a.params, b.params)
    close(first, second, 1e-5)

    twice = Loader(weighted(data, [2] + [1] * 7 + [0] * 4), SMALL, 12).batch_at(0)
    c, third = one_step(run, run.state, twice)
    (zero,) = Loader(data, SMALL, 8).in_order(limit=1)
    grads = [gradient(run, x).grads for x in (alone, zero)]
    want = jax.tree.map(lambda g, h: (8 * g + h) / 9, *grads)
    close(gradient(run, twice).grads, want, 1e-5)


def test_a_step_of_weight_0_changes_nothing_and_stays_finite(data):
    run = start()
    batch = Loader(weighted(data, [0] * 12), SMALL, 12).batch_at(0)
    state, metrics = one_step(run, run.state, batch)
    same(state.params, run.state.params)
    assert metrics["loss"] == 0 and all(np.isfinite(v) for v in metrics.values())


def with_bad_token(batch):
    """The batch, its first scored token replaced by the one that breaks the model."""
    (chunk, labels), *rest = batch.chunks
    b, s = np.argwhere(chunk.slot_ids[..., 0] >= 0)[0]
    tokens = chunk.tokens.copy()
    tokens[b, chunk.slots[b, s]] = BAD
    return batch._replace(chunks=((chunk._replace(tokens=tokens), labels), *rest))


def test_a_gradient_that_is_not_finite_is_skipped_whole(data):
    run = start(
        ema=0.9, name="adamw", weight_decay=0.1, regularizers=REGULARIZERS,
        loss={"regularizers": {"length_correlation": {"weight": 0.1}}},
    )  # fmt: skip
    loader = Loader(data, SMALL, 4)
    state, _ = one_step(run, run.state, loader.batch_at(0))
    bad = with_bad_token(loader.batch_at(1))
    for n in (1, 2):
        after, metrics = one_step(run, state, bad)
        assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])
        for part in ("params", "opt_state", "ema", "hparams"):
            same(getattr(after, part), getattr(state, part))
        assert int(after.step) == int(state.step) + 1 == 1 + n
        assert metrics["skips"] == metrics["skips_in_row"] == n
        same(after.guard.norms, state.guard.norms)
        assert int(after.guard.taken) == 1
        state = after
    after, metrics = one_step(run, state, loader.batch_at(3))
    assert (metrics["skips"], metrics["skips_in_row"]) == (2, 0)
    assert int(after.guard.taken) == 2
    assert not np.array_equal(
        after.params["embed"]["table"], state.params["embed"]["table"]
    )


def nan_loss(out, labels, hparams, key):
    return jnp.where(labels.ids == 0, jnp.nan, 0.0) + jnp.sum(out.scores, axis=1) * 0


def test_a_loss_that_is_nan_is_skipped(data):
    run = start(loss={"name": "bad"}, known=LOSSES | {"bad": nan_loss})
    (first, second) = Loader(data, SMALL, 6).in_order(block=6)
    after, metrics = one_step(run, run.state, first)
    assert np.isnan(metrics["loss"]) and metrics["skips"] == 1
    same(after.params, run.state.params)
    assert one_step(run, run.state, second)[1]["skips"] == 0


def guard(norms, taken, skips=0, in_row=0):
    return Guard(
        *(jnp.int32(n) for n in (skips, in_row)), jnp.array(norms), jnp.int32(taken)
    )


@pytest.mark.parametrize(
    ("norm", "ok"), [(2.0 + 3 * 0.5, True), (2.0 + 3 * 0.5 + 0.01, False), (0.0, True)]
)
def test_spikes_are_judged_by_mean_and_deviation(norm, ok):
    before = guard([1.5, 2.5, 1.5, 2.5], 9, skips=3)  # mean 2, deviation 0.5
    found, after = judge(before, jnp.float32(1), jnp.float32(norm), sigma=3.0)
    assert bool(found) == ok
    want = [1.5, norm, 1.5, 2.5] if ok else [1.5, 2.5, 1.5, 2.5]  # 9 % 4 is 1
    np.testing.assert_allclose(after.norms, want)
    assert int(after.taken) == 9 + ok
    assert (int(after.skips), int(after.in_row)) == ((3, 0) if ok else (4, 1))


def test_nothing_is_a_spike_before_the_window_is_full_or_with_sigma_0():
    nan = float("nan")
    high = jnp.float32(1e6)
    for before, sigma in [
        (guard([1.0, 1.0, 1.0, nan], 3), 3.0),
        (guard([1.0, 1.0, 1.0, 1.0], 4), 0.0),
    ]:
        assert bool(judge(before, jnp.float32(1), high, sigma)[0])
    full = guard([1.0, 1.0, 1.0, 1.0], 4)
    assert not bool(judge(full, jnp.float32(1), high, 3.0)[0])
    assert not bool(judge(full, jnp.float32(nan), jnp.float32(1), 0.0)[0])
    assert not bool(judge(full, jnp.float32(1), jnp.float32(np.inf), 0.0)[0])


def test_a_spike_is_skipped_in_a_step(data):
    run = start(sigma=3.0, window=2, learning_rate=1e-3)
    loader, state = Loader(data, SMALL, 12), run.state
    for i in range(2):
        state, _ = one_step(run, state, loader.batch_at(i))
    batch = loader.batch_at(2)
    after, metrics = one_step(run, state, batch, weight=batch.weight / 100)
    assert metrics["skips"] == 1
    same(after.params, state.params)
    assert one_step(run, state, batch)[1]["skips"] == 0


def test_ema_is_the_corrected_average_of_the_steps_taken(data):
    run = start(ema=0.5)
    loader, state, seen = Loader(data, SMALL, 6), run.state, []
    same(state.ema, state.params)
    for i in range(4):
        batch = loader.batch_at(i)
        bad = i == 1
        state, _ = one_step(run, state, with_bad_token(batch) if bad else batch)
        seen += [] if bad else [state.params]
        weights = 0.5 ** np.arange(len(seen))[::-1]
        mean = lambda *x, w=weights: (
            sum(a * b for a, b in zip(w, x, strict=True)) / w.sum()
        )
        close(state.ema, jax.tree.map(mean, *seen))
    assert len(seen) == 3


def test_frozen_layers_stay_bit_for_bit(data):
    run = start(
        lr_multipliers=(("layers/0/", 0.0), (".*", 1.0)), weight_decay=0.1, name="adamw"
    )
    batch = Loader(data, SMALL, 12).batch_at(0)
    assert set(gradient(run, batch).grads) == {"embed", "layer_1"}
    state, _ = one_step(run, run.state, batch)
    same(state.params["layer_0"], run.state.params["layer_0"])
    assert set(state.params) == set(run.state.params)
    for name in ("embed", "layer_1"):
        a, b = (jax.tree.leaves(s.params[name]) for s in (state, run.state))
        assert any(not np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    names = {str(p) for p, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)}
    assert not any("layer_0" in name for name in names)


def test_a_step_repeats_bit_for_bit(data):
    run = start(loss={"regularizers": {"length_correlation": {"weight": 0.1}}})
    batch = Loader(data, SMALL, 12).batch_at(0)
    same(one_step(run, run.state, batch), one_step(run, run.state, batch))


def test_programs_are_compiled_once_a_shape(data):
    run, loader = start(), Loader(data, SMALL, 12)
    state, shapes = run.state, set()
    for i in range(5):
        batch = loader.batch_at(i)
        shapes |= set(batch.shapes)
        state, _ = run_step(run.step, state, put(run, batch), batch.weight)
    assert len(shapes) == 2
    assert run.step.compiled() == 2 + 2  # a gradient a shape; zeros and update


def keyed(params, batch, examples, responses, keys, reference_logp=None):
    # As example_terms makes the loss's key of its own: equal if both got the same.
    noise = jax.random.uniform(jax.random.split(keys[1])[1], (examples, responses))
    out = toy(params, batch, examples, responses, keys)
    return out._replace(scores=out.scores + noise)


def noisy(out, labels, hparams, key):
    """A loss that reveals whether its key is the model's."""
    noise = jax.random.uniform(key, out.scores.shape)
    return jnp.sum(
        jnp.where(labels.present > 0, jnp.abs(out.scores - noise), 0.0), axis=1
    )


def zero_params():
    return jax.tree.map(lambda x: jnp.zeros_like(x), toy_params())


def test_keys_differ_by_step_chunk_and_reader(data):
    run = start(keyed, zero_params, {"name": "noisy"}, known=LOSSES | {"noisy": noisy})
    batch = Loader(data, SMALL, 12).batch_at(0)
    _, first = one_step(run, run.state, batch)
    _, again = one_step(run, run.state, batch)
    assert first == again
    later = run.state.replace(step=run.state.step + 1)
    _, second = one_step(run, later, batch)
    assert first["score_mean"] != second["score_mean"]
    # One key for both would make scores and noise equal, so the loss 0.
    assert first["loss"] > 0.1
    one = batch._replace(chunks=batch.chunks[:1])
    chunk = put(run, one)[0]
    total = run.step.zeros(run.state)
    sums = [
        run.step.gradient(
            run.state, jax.tree.map(jnp.copy, total), *chunk, i, jnp.float32(1), None
        )[0].sums["score_mean"]
        for i in (0, 1)
    ]
    assert sums[0][0] != sums[1][0]


def test_preference_sums_by_hand():
    nan = float("nan")
    labels = Labels(
        ranks=np.array([[0, 1, -1], [1, 0, 1], [0, 0, -1], [0, 1, -1], [-1] * 3]),
        present=np.array([[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 1, 0], [0] * 3]),
        soft=np.array([nan, nan, nan, 0.2, nan], np.float32),
        strength=np.full(5, nan, np.float32),
        weight=np.array([2, 1, 1, 1, 0], np.float32),
        ratings=np.zeros((5, 3, 0), np.float32),
        steps=np.zeros((5, 3, 0), np.int32),
        lengths=np.ones((5, 3), np.int32),
        ids=np.array([0, 1, 2, 3, -1]),
        source=np.zeros(5, np.int32),
        reference_logp=np.full((5, 3), nan, np.float32),
    )
    scores = jnp.array(
        [[1.0, 0.5, 9], [0, 2.0, 2.0], [5.0, 1, 9], [1.0, 3.0, 9], [7, 7, 7]]
    )
    got = preference_sums(RewardOutput(scores, {}, None), labels)
    # Example 0: margin .5, right, weight 2. 1: pairs (1,0) right by 2 and (1,2) a draw.
    # 2: people tied, does not count. 3: soft .2 says the second, right by 2.
    sp = lambda x: np.log1p(np.exp(x))
    want = {
        "accuracy": [2 * 1 + 0.75 + 1, 4],
        "margin": [2 * 0.5 + 1 + 2, 4],
        "nll": [2 * sp(-0.5) + (sp(-2) + sp(0)) / 2 + sp(-2), 4],
        "identical": [0.5, 4],
        "score_mean": [1.5 + 4 + 6 + 4, 9],
        "score_square": [1.25 + 8 + 26 + 10, 9],
    }
    assert set(got) == set(want)
    for name, values in want.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-6, err_msg=name)


def test_a_step_of_a_mixture_has_the_sums_of_each_source(data):
    source = np.array([0, 1, 2] * 4, np.int32)
    sources = ("a", "b", "none", "c")
    arrays = {**data.arrays, "source": np.where(source == 2, 3, source)}
    mixed = dataclasses.replace(
        weighted(data, np.arange(1, 13)), arrays=arrays | {"weight": np.arange(1, 13.0)}
    )
    batch = Loader(mixed, SMALL, 12).batch_at(0)
    assert len(batch.chunks) > 1
    run = start(sources=sources)
    copy = jax.tree.map(jnp.copy, run.state)
    _, found = run_step(run.step, copy, put(run, batch), batch.weight)
    for s, name in enumerate(sources):
        only = weighted(data, np.where(arrays["source"] == s, np.arange(1, 13), 0))
        alone = Loader(only, SMALL, 12).batch_at(0)
        plain = start()
        _, want = one_step(plain, plain.state, alone)
        for metric in OF_SOURCE:
            total, count = np.asarray(found[f"{name}/{metric}"])
            if name == "none":
                assert total == count == 0
            else:
                np.testing.assert_allclose(total / count, want[metric], rtol=1e-5)
    total, count = sum(np.asarray(found[f"{name}/loss"]) for name in sources)
    np.testing.assert_allclose(count, 78)
    np.testing.assert_allclose(total / count, float(found["loss"]), rtol=1e-5)
