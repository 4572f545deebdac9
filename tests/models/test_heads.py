"""Heads against numpy, by hand, and in a whole model."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from scipy.special import softmax

from rm_jax.models import heads
from rm_jax.models.arch import ArchConfig, from_json, frozen
from rm_jax.models.heads import HEADS, Pooled

D, B, S = 6, 2, 3
NAMES = ("help", "long")


def arch(name="linear", head_init="normal", **knobs):
    _, all_knobs = heads.choose({"name": name, "init": "normal", **knobs}, NAMES)
    return ArchConfig(
        vocab_size=11, d_model=D, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=D,
        d_ff=8, head_init=head_init, head=name, head_knobs=frozen(all_knobs),
        attributes=NAMES if HEADS[name].of_attributes else (),
    )  # fmt: skip


def pooled(seed=0):
    rng = np.random.default_rng(seed)
    x, prompt = rng.normal(size=(2, B, S, D)).astype(np.float32)
    lengths = rng.integers(1, 600, (B, S)).astype(np.float32)
    return Pooled(x, prompt, lengths)


def made(a, seed=1):
    """Parameters of a head, none of them at its start: biases are drawn, too."""
    head = HEADS[a.head]
    if head.init is None:
        return None
    params = head.init(jax.random.key(seed), a)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    draw = lambda k, x: x + 0.1 * jax.random.normal(k, x.shape)
    return tree.unflatten(map(draw, keys, leaves))


def run(a, params, x, key=None):
    out = HEADS[a.head].apply(params, x, a, key)
    return {name: np.asarray(v) for name, v in out.items()}


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)


def arrays(tree):
    return jax.tree.map(lambda v: np.asarray(v, np.float64), tree)


SMALL = {
    "mlp": {"hidden": (5, 4)},
    "gated": {"hidden": (5, 4), "verbosity": "long", "debias": 0.25},
    "quantiles": {"quantiles": 4},
    "bottleneck": {"latent": 4},
    "length_expert": {"hidden": 3},
}


@pytest.mark.parametrize("name", list(HEADS))
@pytest.mark.parametrize("training", [False, True])
def test_outputs_are_those_that_are_declared(name, training):
    a = arch(name, **SMALL.get(name, {}))
    found = run(a, made(a), pooled(), jax.random.key(0) if training else None)
    of_step = HEADS[name].steps  # the model makes [e k p] of them
    declared = {"scores": (), **heads.shapes(a)} | dict.fromkeys(of_step, ())
    assert {n: v.shape for n, v in found.items()} == {
        n: (B, S, *shape) for n, shape in declared.items()
    }
    assert all(v.dtype == np.float32 and np.isfinite(v).all() for v in found.values())


@pytest.mark.parametrize("name", list(HEADS))
def test_an_arch_with_a_head_survives_json(name):
    a = arch(name, **SMALL.get(name, {}))
    assert from_json(a.to_json()) == a and hash(a) == hash(from_json(a.to_json()))


def test_linear():
    a, x = arch(), pooled()
    params = made(a)
    close(run(a, params, x)["scores"], x.response @ np.asarray(params))


def test_mlp_with_and_without_dropout():
    a, x = arch("mlp", hidden=(5, 4), dropout=0.0), pooled()
    p = made(a)
    q = arrays(p)
    h = x.response
    for i in range(2):
        h = np.maximum(h @ q[f"hidden_{i}"]["kernel"] + q[f"hidden_{i}"]["bias"], 0)
    close(run(a, p, x)["scores"], h @ q["kernel"])
    close(run(a, p, x, jax.random.key(0))["scores"], h @ q["kernel"])
    dropped = arch("mlp", hidden=(5, 4), dropout=0.5)
    close(run(dropped, p, x)["scores"], h @ q["kernel"])
    keys = jax.random.split(jax.random.key(3), 4000)
    one = lambda k: HEADS["mlp"].apply(
        {"hidden_0": p["hidden_0"], "kernel": jnp.ones(5)}, x, LAST, k
    )["scores"]
    LAST = arch("mlp", hidden=(5,), dropout=0.5)
    first = np.maximum(
        x.response @ q["hidden_0"]["kernel"] + q["hidden_0"]["bias"], 0
    ).sum(-1)
    found = np.asarray(jax.vmap(one)(keys))
    error = found.std(0) / np.sqrt(len(keys))
    assert (np.abs(found.mean(0) - first) < 5 * error + 1e-6).all()


@pytest.mark.parametrize("weights, row", [({}, [0.5, 0.5]), ({"long": -2}, [0, -2])])
def test_attributes_and_their_weights(weights, row):
    a, x = arch("attributes", weights=weights), pooled()
    p = arrays(made(a))
    y = x.response @ p["kernel"] + p["bias"]
    found = run(a, made(a), x)
    close(found["attributes"], y)
    close(found["scores"], y @ np.asarray(row))


def test_gated():
    a, x = arch("gated", **SMALL["gated"], temperature=2.0), pooled()
    p = arrays(made(a))
    y = x.response @ p["attributes"]["kernel"] + p["attributes"]["bias"]
    h = x.prompt
    for i in range(2):
        h = np.maximum(h @ p[f"hidden_{i}"]["kernel"] + p[f"hidden_{i}"]["bias"], 0)
    gate = softmax(h @ p["gate"] / 2, axis=-1)
    found = run(a, made(a), x)
    close(found["gate"], gate)
    close(found["attributes"], y)
    close(found["scores"], gate[..., 0] * (y[..., 0] - 0.25 * y[..., 1]))


# A gate without hidden layers reads the prompt's first number: logits (8 log 3, 0).
# The response's first two numbers are its ratings, 1 of help and 2 of length.
BY_HAND = {
    "attributes": {"kernel": np.eye(D, 2, dtype=np.float32), "bias": np.zeros(2, "f")},
    "gate": np.float32(8 * np.log(3)) * np.eye(D, 2, dtype=np.float32) * [1, 0],
}
ONE = Pooled(
    np.float32([[[1, 2, 0, 0, 0, 0]]]),
    np.float32([[[1, 0, 0, 0, 0, 0]]]),
    np.float32([[9]]),
)


@pytest.mark.parametrize("temperature, share", [(8.0, 3 / 4), (4, 9 / 10)])
def test_logits_of_the_gate_are_divided_by_the_temperature(temperature, share):
    a = arch("gated", hidden=(), temperature=temperature)
    found = run(a, BY_HAND, ONE)
    close(found["gate"][0, 0], [share, 1 - share])
    close(found["scores"], [[share * 1 + (1 - share) * 2]])


@pytest.mark.parametrize(
    "debias, help_",
    [
        (0.0, 1.0),
        (0.5, 0.0),
        (1.0, -1.0),
        ({"help": 0.25}, 0.5),
        (FrozenConfigDict({"help": 0.25, "long": 1.0}), 0.5),
        ({}, 1.0),
    ],
)
def test_what_is_taken_off_for_verbosity(debias, help_):
    """Of verbosity itself nothing is left."""
    a = arch("gated", hidden=(), temperature=8.0, verbosity="long", debias=debias)
    a = from_json(json.loads(json.dumps(a.to_json())))
    found = run(a, BY_HAND, ONE)
    close(found["scores"], [[3 / 4 * help_]])
    close(found["attributes"], [[[1, 2]]])  # the ratings stay what they are


def test_the_gate_drops_in_training_only():
    x = pooled()
    a = arch("gated", hidden=(64, 64), dropout=0.5, temperature=1.0)
    p = made(a)
    kept = run(arch("gated", hidden=(64, 64), dropout=0.0, temperature=1.0), p, x)
    close(run(a, p, x)["gate"], kept["gate"])
    one, other = (run(a, p, x, jax.random.key(i)) for i in (0, 1))
    assert (one["gate"] != kept["gate"]).any(), "nothing dropped"
    assert (one["gate"] != other["gate"]).any(), "the same dropped"
    close(one["attributes"], kept["attributes"])


def test_quantiles_and_gaussian():
    a, x = arch("quantiles", quantiles=4, weights={"help": 1}), pooled()
    p = arrays(made(a))
    q = np.einsum("bsd,dan->bsan", x.response, p["kernel"]) + p["bias"]
    found = run(a, made(a), x)
    close(found["quantiles"], q)
    close(found["scores"], q.mean(-1)[..., 0])
    close(found["attributes"], q.mean(-1))
    a = arch("gaussian", weights={"help": 1})
    p = arrays(made(a))
    found = run(a, made(a), x)
    close(found["attributes"], x.response @ p["mean"]["kernel"] + p["mean"]["bias"])
    mean = x.response @ p["mean"]["kernel"] + p["mean"]["bias"]
    close(found["scores"], mean[..., 0])
    close(found["log_std"], x.response @ p["log_std"]["kernel"] + p["log_std"]["bias"])


@pytest.mark.parametrize("name, latent", [("gaussian", ""), ("bottleneck", "latent_")])
def test_log_std_stays_where_its_exponential_is_a_float32(name, latent):
    a, x = arch(name, **SMALL.get(name, {})), pooled()
    p = made(a)
    for bias, limit in ((100.0, 5.0), (-100.0, -10.0)):
        at = {**p["log_std"], "bias": p["log_std"]["bias"] + bias}
        close(run(a, {**p, "log_std": at}, x)[f"{latent}log_std"], limit)


def test_the_two_kernels_of_odin_differ_and_have_the_papers_spread():
    a = arch("odin")
    init = jax.vmap(lambda key: HEADS["odin"].init(key, a))
    drawn = init(jax.random.split(jax.random.key(0), 4000))
    q, l = np.asarray(drawn["quality"]), np.asarray(drawn["length"])
    assert np.corrcoef(q.ravel(), l.ravel())[0, 1] == pytest.approx(0.0, abs=0.03)
    for kernel in (q, l):
        assert np.var(kernel) * D == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("name", ["odin", "length_expert"])
def test_what_knows_only_lengths_is_thrown_away(name):
    a, x = arch(name, **SMALL.get(name, {})), pooled()
    p = made(a)
    training, after = run(a, p, x, jax.random.key(0)), run(a, p, x)
    close(training["scores"], after["quality"] + after["length"])
    close(after["scores"], after["quality"])
    assert np.abs(after["length"]).min() > 1e-4


def test_length_expert_sees_nothing_but_lengths():
    a = arch("length_expert", hidden=3)
    p, x = made(a), pooled()
    other = pooled(5)._replace(lengths=x.lengths)
    close(run(a, p, x)["length"], run(a, p, other)["length"])
    e = arrays(p)["expert"]
    l = np.stack([x.lengths / 256, np.log1p(x.lengths) - np.log(257)], -1)
    want = np.maximum(l @ e["kernel"] + e["bias"], 0) @ e["out"]
    close(run(a, p, x)["length"], want)


def test_bottleneck_samples_in_training_only():
    a, x = arch("bottleneck", latent=4), pooled()
    p = made(a)
    q = arrays(p)
    mean = x.response @ q["mean"]
    log_std = x.response @ q["log_std"]["kernel"] + q["log_std"]["bias"]
    found = run(a, p, x)
    close(found["latent_mean"], mean)
    close(found["latent_log_std"], log_std)
    close(found["scores"], mean @ q["kernel"])
    one = lambda k: HEADS["bottleneck"].apply(p, x, a, k)["scores"]
    drawn = np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(0), 4000)))
    std = np.sqrt(np.exp(2 * log_std) @ q["kernel"] ** 2)
    assert (np.abs(drawn.mean(0) - mean @ q["kernel"]) < 5 * std / 4000**0.5).all()
    np.testing.assert_allclose(drawn.std(0), std, rtol=0.08)


def of(present, logp=None, reference_logp=None):
    return heads.Responses(present, logp, reference_logp)


def test_implicit_is_beta_times_the_log_ratio():
    a = arch("implicit", beta=0.5)
    present = jnp.asarray([[True, True, False]])
    given = of(present, np.float32([[-3, -9, 7]]), np.float32([[-5, -6, np.nan]]))
    found = HEADS["implicit"].combine({}, given, a)
    close(found["log_ratio"], [[2, -3, 0]])
    close(found["scores"], [[1, -1.5, 0]])
    with pytest.raises(ValueError, match="'implicit' scores by reference_logp"):
        HEADS["implicit"].combine({}, of(present, given.logp), a)


def test_affine():
    a, x = arch("affine"), pooled()
    p = arrays(made(a))
    assert p["bias"] != 0
    close(run(a, made(a), x)["scores"], x.response @ p["kernel"] + p["bias"])


@pytest.mark.parametrize("name", ["linear", "affine", "mlp", "attributes", "steps"])
def test_a_last_kernel_starts_as_stiennon_2020_has_it(name):
    """N(0, 1/(n + 1)) of n inputs: over 4,000 draws of each the variance is that."""
    a = arch(name, **SMALL.get(name, {}))
    init = HEADS[name].init
    drawn = jax.vmap(lambda key: init(key, a))(
        jax.random.split(jax.random.key(0), 4000)
    )
    kernel = drawn if name == "linear" else drawn["kernel"]
    n = 4 if name == "mlp" else D
    assert np.var(kernel) * (n + 1) == pytest.approx(1.0, abs=0.03)
    assert np.mean(kernel) == pytest.approx(0.0, abs=0.02)


def test_pair_is_antisymmetric_and_may_be_cyclic():
    v = np.zeros((1, 4, 1, 2), np.float32)
    angles = 2 * np.pi * np.arange(3) / 3
    v[0, :3, 0] = np.stack([np.cos(angles), np.sin(angles)], -1)
    v[0, 3] = 99.0
    present = jnp.asarray([[True, True, True, False]])
    out = HEADS["pair"].combine(
        {"scores": jnp.zeros((1, 4)), "embedding": v}, of(present), None
    )
    delta = np.asarray(out["preference"])[0]
    close(delta, -delta.T)
    third = np.sin(2 * np.pi / 3)
    close(delta[:3, :3], third * np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]))
    close(out["scores"][0], np.zeros(4))
    first_two = present & jnp.array([[1, 1, 0, 0]])
    two = HEADS["pair"].combine({"embedding": v}, of(first_two), None)
    close(two["scores"][0, 0] - two["scores"][0, 1], third)


def test_zero_starts_at_no_preference():
    for name in ("linear", "mlp", "attributes", "quantiles", "gaussian", "bottleneck",
                 "steps"):  # fmt: skip
        a = arch(name, head_init="zero", **SMALL.get(name, {}))
        params = HEADS[name].init(jax.random.key(0), a)
        assert not run(a, params, pooled())["scores"].any(), name


@pytest.mark.parametrize(
    "given, message",
    [
        ({"name": "lineer"}, "known: .*'linear'"),
        ({"name": "linear", "bias": True}, "head linear has the knobs {}"),
        ({"name": "mlp", "hiden": 3}, "hiden: .*'hidden': .1024"),
        ({"name": "mlp", "hidden": 3}, "hidden = 3: want a value like .1024"),
        ({"name": "mlp", "hidden": (0,)}, "hidden = .0,.: want"),
        ({"name": "mlp", "dropout": 1.0}, "dropout = 1.0: want"),
        ({"name": "bottleneck", "latent": 2.5}, "latent = 2.5: want"),
        ({"name": "gated", "verbosity": 1}, "verbosity = 1: want"),
        ({"name": "gated", "hidden": 1024}, "hidden = 1024: want a value like .1024"),
        ({"name": "gated", "temperature": 0.0}, "temperature = 0.0: .* above 0"),
        ({"name": "gated", "temperature": np.inf}, "temperature = inf: .* above 0"),
        ({"name": "gated", "debias": 1.1}, "debias = 1.1: .*from 0 to 1"),
        ({"name": "implicit", "beta": 0}, "beta = 0: .*from 1e-06 to 1e.06"),
        ({"name": "steps", "reduce": "max"}, "reduce = 'max'; known: .*'last'"),
        ({"name": "no_such_module:HEAD"}, "cannot import 'no_such_module'"),
        ({"name": "gated", "debias": {"help": -0.1}}, r"debias\['help'\] = -0.1: want"),
        ({"name": "gated", "dropout": {"help": 0.1}}, "dropout = .*: want"),
        ({"name": "attributes", "weights": {"a": "x"}}, "weights = .*: want"),
        ({"name": "json:dumps"}, "want an rm_jax.models.heads.Head"),
    ],
)
def test_what_is_no_head_is_refused(given, message):
    with pytest.raises(ValueError, match=f"config.model.head.{message}|{message}"):
        heads.choose({"init": "zero"} | given, NAMES)


@pytest.mark.parametrize("name", sorted(HEADS))
def test_a_head_of_parts_that_must_differ_does_not_start_at_zero(name):
    given = {"name": name, "init": "zero"}
    if name in ("odin", "pair"):
        with pytest.raises(
            ValueError, match=f"init = 'zero': the head {name} .*normal"
        ):
            heads.choose(given, NAMES)
    else:
        assert heads.choose(given, NAMES)[0] == name


def test_ratings_that_the_data_have_not():
    with pytest.raises(ValueError, match="'gaussian' predicts ratings"):
        heads.choose({"name": "gaussian", "init": "zero"}, ())
    a = arch("attributes", weights={"helpful": 1.0})
    with pytest.raises(ValueError, match=r"\['helpful'\].*\['help', 'long'\]"):
        run(a, made(a), pooled())


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"verbosity": "wordy"}, "'wordy'.*'help', 'long'"),
        ({"verbosity": "long", "debias": {"a": 0.1}}, r"\['a'\].*'help', 'long'"),
        ({"verbosity": "long", "debias": {"long": 0.1}}, "'long'.* leave it out"),
        ({"debias": 0.1}, "debias = 0.1 is of no .*verbosity, one of .'help'"),
        ({"debias": {"help": 0.1}}, "debias = {'help': 0.1} is of no"),
    ],
)
def test_verbosity_that_the_gate_cannot_take_off(knobs, message):
    a = arch("gated", hidden=(5,), **knobs)
    with pytest.raises(ValueError, match=message):
        run(a, made(a), pooled())


def test_knobs_of_a_config_are_saved_and_read_back():
    weights = FrozenConfigDict({"help": 1.0, "long": -0.5})  # no Mapping
    a = arch("attributes", weights=weights)
    assert hash(a) == hash(arch("attributes", weights=weights.to_dict()))
    read = json.loads(json.dumps(a.to_json()))
    assert read == a.to_json() and from_json(read) == a
