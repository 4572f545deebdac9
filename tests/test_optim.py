"""Optimisers against optax, schedules by hand, masks, stacks, averages."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rm_jax.optim import (
    RULES,
    ema_update,
    make_optimizer,
    merge,
    schedule_factor,
)

ALL = ((".*", 1.0),)
BASE = dict(
    n_pattern=1,
    total_steps=10,
    name="sgd",
    learning_rate=0.1,
    schedule="constant",
    warmup_steps=0,
    final_fraction=0.0,
    b1=0.9,
    b2=0.99,
    eps=1e-8,
    weight_decay=0.0,
    clip_norm=0.0,
    lr_multipliers=ALL,
    weight_decay_multipliers=ALL,
)


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), tree
    )


def make_params(groups=3):
    shapes = {
        "embed": {"embedding": (5, 4)},
        "stack_0": {"q": {"kernel": (groups, 4, 4)}, "norm": {"scale": (groups, 4)}},
        "stack_1": {"q": {"kernel": (groups, 4, 4)}, "norm": {"scale": (groups, 4)}},
        "layer_6": {"q": {"kernel": (4, 4)}},
        "head": {"kernel": (4,)},
    }
    is_shape = lambda s: isinstance(s, tuple)
    return random_like(
        jax.tree.map(lambda s: np.zeros(s), shapes, is_leaf=is_shape), seed=0
    )


def run(params, steps=4, gradients=None, **changes):
    """Parameters and statistics after some steps with random gradients."""
    tx = make_optimizer(params, **{**BASE, **changes})
    trainable, frozen = tx.split(params)
    state = jax.jit(tx.init)(trainable)
    update = jax.jit(tx.update)
    for i in range(steps):
        grads = gradients(i) if gradients else random_like(params, seed=i + 1)
        grads, _ = tx.split(grads)
        trainable, state, stats = update(grads, state, trainable, tx.hparams, i)
    return merge(trainable, frozen), state, stats


def run_optax(tx, params, steps=4):
    state = tx.init(params)
    for i in range(steps):
        updates, state = tx.update(random_like(params, seed=i + 1), state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(got, want, rtol=1e-5):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize(
    "name, reference",
    [
        ("adamw", optax.adamw(0.1, 0.9, 0.99, 1e-8, weight_decay=0.2)),
        ("lion", optax.lion(0.1, 0.9, 0.99, weight_decay=0.2)),
        (
            "sgd",
            optax.chain(
                optax.trace(0.9),
                optax.add_decayed_weights(0.2),
                optax.scale_by_learning_rate(0.1),
            ),
        ),
    ],
)
def test_steps_are_those_of_optax(name, reference):
    params = make_params()
    got, _, _ = run(params, name=name, weight_decay=0.2, n_pattern=2)
    assert_close(got, run_optax(reference, params))


def test_sgd_without_momentum_by_hand():
    params = {"w": {"kernel": jnp.asarray([1.0, -2.0])}}
    grads = lambda _: {"w": {"kernel": jnp.asarray([0.5, 1.0])}}
    got, _, stats = run(params, steps=1, gradients=grads, b1=0.0, weight_decay=0.1)
    change = 0.1 * np.asarray([0.5 + 0.1 * 1.0, 1.0 - 0.1 * 2.0])
    np.testing.assert_allclose(got["w"]["kernel"], [1, -2] - change, rtol=1e-6)
    np.testing.assert_allclose(stats["grad_norm"], math.sqrt(1.25), rtol=1e-6)
    np.testing.assert_allclose(stats["update_norm"], np.linalg.norm(change), rtol=1e-6)
    np.testing.assert_allclose(stats["learning_rate"], 0.1, rtol=1e-6)


def test_adafactor_is_that_of_optax_without_stacks():
    """At a cap b2 that the first steps do not reach; 128 is the least factored size."""
    params = {"a": {"kernel": np.zeros((128, 130))}, "b": {"scale": np.zeros(7)}}
    params = random_like(params, seed=0)
    reference = optax.adafactor(
        0.1, decay_rate=0.8, multiply_by_parameter_scale=False, weight_decay_rate=None
    )
    got, state, _ = run(params, name="adafactor", b2=0.999)
    assert_close(got, run_optax(reference, params), rtol=1e-4)
    assert max(a.size for a in jax.tree.leaves(state)) == 130


def test_adafactor_caps_its_decay():
    """One element: v is a plain moving average, its decay 0 and then at most b2."""
    params = {"w": {"scale": jnp.asarray([1.0])}}
    grads = lambda i: {"w": {"scale": jnp.asarray([[3.0, 0.1][i]])}}
    got, _, _ = run(params, 2, gradients=grads, name="adafactor", b2=0.25)
    v = 0.25 * 9.0 + 0.75 * 0.01
    want = 1.0 - 0.1 * 1.0 - 0.1 * 0.1 / math.sqrt(v)
    np.testing.assert_allclose(got["w"]["scale"], [want], rtol=1e-5)


@pytest.mark.parametrize("name", list(RULES))
def test_stacked_is_unrolled(name):
    """Layer by layer, also where a rule clips or factors a whole leaf."""
    stacked = random_like(
        {
            "stack_0": {"up": {"kernel": np.zeros((2, 128, 129))}},
            "stack_1": {"up": {"kernel": np.zeros((2, 128, 129))}},
            "head": {"kernel": np.zeros(3)},
        },
        seed=0,
    )
    # Layers of very different gradients, so that statistics over a stack would show.
    size = lambda g: jnp.asarray([1.0, 100.0]).reshape(2, 1, 1) if g.ndim == 3 else 1.0

    def unroll(tree):
        layers = {
            f"layer_{g * 2 + j}": jax.tree.map(lambda a, g=g: a[g], tree[f"stack_{j}"])
            for g in range(2)
            for j in range(2)
        }
        return {**layers, "head": tree["head"]}

    def gradients(i):
        grads = random_like(stacked, seed=i + 1)
        return jax.tree.map(lambda g: g * size(g), grads)

    masks = {
        "lr_multipliers": (("layers/2/", 0.0), ("layers/1/", 0.5), (".*", 1.0)),
        "weight_decay_multipliers": (("layers/[01]/", 0.0), (".*", 1.0)),
    }
    more = dict(name=name, n_pattern=2, weight_decay=0.1, clip_norm=1.0, **masks)
    got, _, stats = run(stacked, 3, gradients, **more)
    want, _, want_stats = run(
        unroll(stacked), 3, lambda i: unroll(gradients(i)), **more
    )
    assert_close(unroll(got), want)
    for key, value in stats.items():
        np.testing.assert_allclose(value, want_stats[key], rtol=1e-5)


@pytest.mark.parametrize(
    "clip, scale", [(0.0, 1.0), (2.5, 0.5), (5.0, 1.0), (9.0, 1.0)]
)
def test_clipping_by_global_norm(clip, scale):
    params = {"a": jnp.asarray([0.0]), "b": jnp.asarray([0.0, 0.0])}
    grads = lambda _: {"a": jnp.asarray([3.0]), "b": jnp.asarray([4.0, 0.0])}
    got, _, stats = run(params, 1, grads, clip_norm=clip, b1=0.0)
    np.testing.assert_allclose(got["a"], [-0.3 * scale], rtol=1e-6)
    np.testing.assert_allclose(got["b"], [-0.4 * scale, 0.0], rtol=1e-6)
    np.testing.assert_allclose(stats["grad_norm"], 5.0, rtol=1e-6)


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_zero_gradients_change_nothing(clip):
    params = make_params()
    zero = jax.tree.map(jnp.zeros_like, params)
    for name in RULES:
        got, _, stats = run(
            params, 1, lambda _: zero, name=name, clip_norm=clip, n_pattern=2
        )
        assert_close(got, params, rtol=0)
        assert stats["update_norm"] == 0


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_gradients_that_are_not_finite_show_in_the_norm(clip):
    for bad in (np.nan, np.inf):
        grads = lambda _, bad=bad: {"w": jnp.asarray([1.0, bad])}
        _, _, stats = run({"w": jnp.zeros(2)}, 1, grads, clip_norm=clip)
        assert not np.isfinite(stats["grad_norm"])


def factor(step, **changes):
    knobs = dict(schedule="cosine", warmup_steps=4, total_steps=12, final_fraction=0.1)
    return float(schedule_factor(step, **{**knobs, **changes}))


@pytest.mark.parametrize(
    "schedule, half, end",
    [("constant", 1.0, 1.0), ("linear", 0.55, 0.1), ("cosine", 0.55, 0.1)],
)
def test_schedule_by_hand(schedule, half, end):
    steps = (0, 1, 3, 4, 8, 12, 99)
    got = [factor(s, schedule=schedule) for s in steps]
    want = [0.25, 0.5, 1.0, 1.0, half, end, end]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_cosine_a_quarter_of_the_way():
    want = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))
    np.testing.assert_allclose(factor(6), want, rtol=1e-6)


def test_schedule_without_warm_up_and_all_warm_up():
    assert factor(0, warmup_steps=0) == 1.0
    assert factor(11, warmup_steps=12) == 1.0
    assert factor(0, warmup_steps=0, total_steps=0) == 1.0


def test_learning_rate_follows_the_schedule_and_the_state():
    params = {"w": jnp.zeros(1)}
    tx = make_optimizer(params, **{**BASE, "schedule": "linear", "b1": 0.0})
    one = {"w": jnp.ones(1)}
    hparams = {**tx.hparams, "learning_rate": jnp.float32(7.0)}
    new, _, stats = tx.update(one, tx.init(params), params, hparams, 5)
    np.testing.assert_allclose(stats["learning_rate"], 3.5, rtol=1e-6)
    np.testing.assert_allclose(new["w"], [-3.5], rtol=1e-6)


def test_members_may_differ_in_every_number():
    params = make_params()
    tx = make_optimizer(params, **{**BASE, "name": "adamw", "n_pattern": 2})
    both = jax.tree.map(lambda h: jnp.stack([h, h / 2]), tx.hparams)
    both["clip_norm"] = jnp.asarray([jnp.inf, 0.5])
    two = lambda tree: jax.tree.map(lambda a: jnp.stack([a, a]), tree)
    grads = random_like(params, seed=1)
    state = jax.vmap(tx.init)(two(params))
    got, _, _ = jax.vmap(tx.update, in_axes=(0, 0, 0, 0, None))(
        two(grads), state, two(params), both, 0
    )
    for m in range(2):
        h = jax.tree.map(lambda a, m=m: a[m], both)
        want, _, _ = tx.update(grads, tx.init(params), params, h, 0)
        assert_close(jax.tree.map(lambda a, m=m: a[m], got), want)


def bits(tree):
    return [np.asarray(a).view(np.uint32) for a in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", list(RULES))
def test_frozen_parameters_keep_every_bit(name):
    """The two lowest layers, half of a stack each, and the embedding; even at -0."""
    params = make_params(groups=2)
    params["stack_0"]["norm"]["scale"] = -jnp.zeros((2, 4))
    freeze = (("embed", 0.0), ("layers/[01]/", 0.0), (".*", 1.0))
    got, state, _ = run(
        params, name=name, lr_multipliers=freeze, weight_decay=0.1, n_pattern=2
    )
    frozen = lambda p: [
        p["embed"],
        [jax.tree.map(lambda a: a[0], p[f"stack_{j}"]) for j in (0, 1)],
    ]
    np.testing.assert_equal(bits(frozen(got)), bits(frozen(params)))
    for j in (0, 1):
        moved = got[f"stack_{j}"]["q"]["kernel"] != params[f"stack_{j}"]["q"]["kernel"]
        assert moved[1].all()
    assert not any("embed" in str(p) for p, _ in jax.tree.leaves_with_path(state))


def test_frozen_layers_of_a_stack_ignore_what_is_not_finite():
    params = {"stack_0": {"w": jnp.asarray([[-np.inf], [1.0]])}}
    grads = {"stack_0": {"w": jnp.asarray([[np.nan], [1.0]])}}
    freeze = (("layers/0/", 0.0), (".*", 1.0))
    got, _, stats = run(
        params, 1, lambda _: grads, lr_multipliers=freeze, weight_decay=0.5
    )
    np.testing.assert_allclose(got["stack_0"]["w"], [[-np.inf], [0.85]], rtol=1e-6)
    assert stats["grad_norm"] == 1.0
    np.testing.assert_allclose(stats["update_norm"], 0.15, rtol=1e-6)


def test_multipliers_scale_rate_and_decay():
    params = {"a": jnp.ones(1), "b": jnp.ones(1)}
    zero = jax.tree.map(jnp.zeros_like, params)
    got, _, _ = run(
        params,
        1,
        lambda _: zero,
        weight_decay=0.5,
        lr_multipliers=(("a", 0.5), (".*", 2.0)),
        weight_decay_multipliers=(("b", 3.0), ("a", 1.0)),
    )
    np.testing.assert_allclose(got["a"], [1 - 0.1 * 0.5 * 0.5], rtol=1e-6)
    np.testing.assert_allclose(got["b"], [1 - 0.1 * 2.0 * 0.5 * 3.0], rtol=1e-6)


def test_split_and_merge():
    params = make_params()
    tx = make_optimizer(
        params, **{**BASE, "n_pattern": 2, "lr_multipliers": (("embed", 0.0), *ALL)}
    )
    trainable, frozen = tx.split(params)
    assert set(frozen) == {"embed"} and set(trainable) == set(params) - {"embed"}
    assert_close(merge(trainable, frozen), params, rtol=0)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"name": "adam"}, ["optim.name = 'adam'", "adamw"]),
        ({"schedule": "cos"}, ["optim.schedule = 'cos'", "cosine"]),
        ({"learning_rate": 0.0}, ["learning_rate = 0.0", "above 0"]),
        ({"learning_rate": math.nan}, ["learning_rate = nan"]),
        ({"clip_norm": -1.0}, ["clip_norm = -1.0"]),
        ({"weight_decay": -1.0}, ["weight_decay = -1.0"]),
        ({"b1": 1.0}, ["b1 = 1.0", "[0, 1)"]),
        ({"final_fraction": 1.5}, ["final_fraction = 1.5"]),
        ({"warmup_steps": 11}, ["warmup = 11", "[0, 10]"]),
        ({"lr_multipliers": (("head", 1.0),)}, ["lr_multipliers", "layers/0/q/kernel"]),
        ({"lr_multipliers": (("haed", 0.0), *ALL)}, ["'haed' matches none"]),
        (
            {"lr_multipliers": (*ALL, ("head", 0.0))},
            ["'head' comes after", "head/kernel"],
        ),
        ({"lr_multipliers": ((".*", -1.0),)}, ["lr_multipliers", "-1.0"]),
        ({"lr_multipliers": (("(", 1.0),)}, ["regex"]),
        ({"lr_multipliers": (("head",), *ALL)}, ["('head',)", "pair"]),
        ({"lr_multipliers": ((".*", 0.0),)}, ["nothing to train"]),
        ({"weight_decay_multipliers": ()}, ["weight_decay_multipliers does not cover"]),
    ],
)
def test_errors_name_the_key_and_the_value(changes, words):
    with pytest.raises(ValueError) as e:
        make_optimizer(make_params(), **{**BASE, "n_pattern": 2, **changes})
    for word in words:
        assert word in str(e.value)


def test_hparams_are_what_the_rule_reads():
    for name, rule in RULES.items():
        tx = make_optimizer(make_params(), **{**BASE, "name": name, "n_pattern": 2})
        common = {"learning_rate", "weight_decay", "clip_norm"}
        assert set(tx.hparams) == common | set(rule.reads)
        assert all(h.dtype == np.float32 for h in tx.hparams.values())


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9999])
def test_average_of_parameters_by_hand(decay):
    values = [3.0, 1.0, -2.0, 5.0]
    ema = {"w": jnp.full(1, 77.0)}
    for t, value in enumerate(values):
        ema = jax.jit(ema_update)(ema, {"w": jnp.full(1, value)}, decay, t)
        weights = float(np.float32(decay)) ** np.arange(t, -1, -1.0)
        want = np.average(values[: t + 1], weights=weights)
        np.testing.assert_allclose(ema["w"], [want], rtol=1e-4)


def test_average_of_a_constant_is_the_constant():
    params = {"w": jnp.asarray([1 / 3])}
    ema = params
    for t in (0, 1, 10, 10_000):
        ema = ema_update(ema, params, 0.999, t)
    np.testing.assert_array_equal(ema["w"], params["w"])
