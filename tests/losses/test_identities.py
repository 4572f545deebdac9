"""What holds between losses, and what holds for every loss and regulariser there is."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made import KEY, call, grad, knobs_of, make_labels

from rm_jax.losses import (
    LOSSES,
    REGULARIZERS,
    choose,
    example_terms,
    global_terms,
    parameter_terms,
    sums,
)
from rm_jax.losses.distributional import gaussian_mle, gaussian_reparam, quantile
from rm_jax.losses.ties import davidson_logp, rao_kupper_logp
from rm_jax.types import RewardOutput

E, K = 3, 2
SHAPES = {
    "attributes": (1,), "log_std": (1,), "quantiles": (1, 5), "steps": (4,),
    "latent_mean": (3,), "latent_log_std": (3,), "quality": (), "length": (),
}  # fmt: skip


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def labels_of_all(present=None, **changes):
    """Every label there is, for E pairs."""
    fields = {
        "strength": [1.0, 0.5, 2.0],
        "ratings": np.tile([[[1.0], [0.0]]], (E, 1, 1)),
        "steps": np.tile([[[1.0, 0.0, 0.5, -1.0]] * K], (E, 1, 1)),
        "reference_logp": np.full((E, K), -3.0),
        "lengths": [[300, 20], [50, 400], [90, 100]],
    }
    if present is not None:
        fields["present"] = present
    return make_labels([[0, 1], [1, 0], [0, 1]], **fields | changes)


def drawn(seed=0, scale=1.0):
    """Outputs of every head."""
    rng = np.random.default_rng(seed)
    draw = lambda *s: jnp.asarray(scale * rng.normal(size=s), jnp.float32)
    aux = {name: draw(E, K, *shape) for name, shape in SHAPES.items()}
    return RewardOutput(draw(E, K), aux, draw(E, K) - 5.0)


def both(name, fn=None):
    """(outputs, labels) -> the term of a loss or of a regulariser, one number."""
    config = {"name": "bt", "regularizers": {name: {}}}
    objective = choose({"name": name} if name in LOSSES else config)
    term = "loss" if name in LOSSES else name
    h = objective.hparams

    def value(out, labels):
        terms = example_terms(objective, out, labels, h, KEY)
        if term in terms:
            return jnp.sum(labels.weight * terms[term])
        head = {"head": {n: out.aux[n][0] for n in ("quality", "length")}}
        totals = sums(objective, out, labels, h)
        terms = global_terms(objective, totals, h)
        return (terms | parameter_terms(objective, head, h))[term]

    return value


# lora_nnm is of adapters, not of outputs: test_nnm.py.
NAMES = [*LOSSES, *sorted(REGULARIZERS.keys() - {"lora_nnm"})]
every = pytest.mark.parametrize("name", NAMES)


# Between losses


@pytest.mark.parametrize(
    "name, knobs, strength",
    [
        ("margin_bt", {"margin": 0.0}, math.nan),
        ("margin_bt", {"margin": 0.0, "margin_strength": 1.0}, 0.0),
        ("scaled_bt", {"scale": 1.0}, 1.0),
        ("adaptive_margin", {}, 0.0),
        ("adaptive_margin", {}, math.nan),
        ("plackett_luce", {}, math.nan),
        ("soft_label", {}, math.nan),
    ],
)
def test_at_these_values_a_loss_is_bradley_terry(name, knobs, strength):
    scores = np.random.default_rng(0).normal(size=(40, 2)) * 3
    labels = make_labels([[0, 1], [1, 0]] * 20, strength=np.full(40, strength))
    for evaluate in (call, grad):
        got = evaluate(LOSSES[name], scores, labels, **knobs)
        want = evaluate(LOSSES["bt"], scores, labels)
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(
    "knobs, margins",
    [
        ({"margin": 0.4}, [0.4] * 4),
        ({"margin": 0.0, "margin_strength": 1 / 3}, [0, 1 / 3, 2 / 3, 1]),  # small
        ({"margin": 0.0, "margin_strength": 1.0}, [0, 1, 2, 3]),  # large
        ({"margin": 0.5, "margin_strength": 1.0}, [0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_the_margins_of_llama_2(knobs, margins):
    labels = make_labels([[0, 1]] * 4, strength=[0, 1, 2, 3])
    got = call(LOSSES["margin_bt"], [[1.5, 0.0]] * 4, labels, **knobs)
    np.testing.assert_allclose(got, np.logaddexp(0, np.array(margins) - 1.5), rtol=1e-6)


def test_plackett_luce_and_all_pairs_by_hand():
    labels = make_labels([[0, 1, 2]])
    pl, pairs = (
        float(call(LOSSES[n], [[2.0, 1.0, 0.0]], labels)[0])
        for n in ("plackett_luce", "bt_kwise")
    )
    assert pl == pytest.approx(0.721, abs=5e-4)
    assert pairs == pytest.approx(0.251, abs=5e-4)


def test_gradients_of_bradley_terry():
    got = grad(LOSSES["bt"], [[0.7, -0.4]], make_labels([[0, 1]]))
    s = 1 / (1 + math.exp(1.1))
    np.testing.assert_allclose(got, [[-s, s]], rtol=1e-6)


def test_robust_is_smooth_with_the_flips_taken_off():
    """robust = (smooth - 2 e sp(d)) / (1 - 2 e), whatever the scores."""
    scores, e = np.random.default_rng(1).normal(size=(20, 2)) * 3, 0.2
    labels = make_labels([[0, 1]] * 20)
    robust, smooth = (
        call(LOSSES[n], scores, labels, flips=e) for n in ("robust_bt", "label_smooth")
    )
    taken = 2 * e * np.logaddexp(0, scores[:, 0] - scores[:, 1])
    np.testing.assert_allclose(robust, (smooth - taken) / (1 - 2 * e), atol=2e-6)


@pytest.mark.parametrize("logp", [rao_kupper_logp, davidson_logp])
@pytest.mark.parametrize("knob", [1e-3, 1.0, 15.0])
@pytest.mark.parametrize("far", [0.0, 3.0, 60.0, 1e4])
def test_three_outcomes_sum_to_one_and_mirror(logp, knob, far):
    one, other = (logp(jnp.float32(d), jnp.float32(knob)) for d in (far, -far))
    assert sum(math.exp(float(p)) for p in one) == pytest.approx(1.0, rel=2e-5)
    np.testing.assert_allclose(one[0], other[1], rtol=1e-6)
    np.testing.assert_allclose(one[2], other[2], rtol=1e-5)


@pytest.mark.parametrize("name, knobs", [("rao_kupper", {"threshold": 1e-3}),
                                         ("davidson", {"ties": 1e-3})])  # fmt: skip
def test_without_room_for_ties_a_win_is_bradley_terry(name, knobs):
    labels, scores = make_labels([[0, 1]] * 3), [[-1.0, 0.0], [0.5, 0.0], [3.0, 0.0]]
    got = call(LOSSES[name], scores, labels, **knobs)
    np.testing.assert_allclose(got, call(LOSSES["bt"], scores, labels), rtol=5e-3)


def of(fn, labels, **aux):
    aux = {n: jnp.asarray(x, jnp.float32) for n, x in aux.items()}
    out = RewardOutput(jnp.zeros(labels.ranks.shape), aux, None)
    return fn(out, labels, knobs_of(fn), KEY)


def test_the_median_is_half_the_absolute_error():
    y, q = np.random.default_rng(0).normal(size=(2, 4, K, 1))
    labels = make_labels(np.zeros((4, K)), ratings=y)
    got = of(quantile, labels, quantiles=q[..., None])
    np.testing.assert_allclose(got, np.abs(y - q).mean((1, 2)) / 2, rtol=1e-5)


def test_the_gaussians_at_a_known_spread():
    """With σ = 1 the density is half of what the sample is where σ is nothing."""
    y, mean = np.random.default_rng(0).normal(size=(2, 4, K, 1))
    labels = make_labels(np.zeros((4, K)), ratings=y)
    full = lambda x: np.full((4, K, 1), x)
    density = of(gaussian_mle, labels, attributes=mean, log_std=full(0.0))
    sampled = of(gaussian_reparam, labels, attributes=mean, log_std=full(-20.0))
    np.testing.assert_allclose(
        density, sampled / 2 + 0.5 * math.log(2 * math.pi), rtol=1e-5
    )


def test_hard_soft_and_plain_steps_agree_on_labels_of_0_and_1():
    labels = labels_of_all(steps=np.tile([[[1.0, 0.0, 1.0, -1.0]] * K], (E, 1, 1)))
    found = [both(n)(drawn(), labels) for n in ("prm_bce", "prm_hard", "prm_soft")]
    np.testing.assert_allclose(found, found[0], rtol=1e-6)


def test_an_implicit_reward_of_no_ratio_is_a_coin():
    out = drawn()
    out = out._replace(scores=0.0 * out.scores)
    got = both("implicit_prm_ce")(out, labels_of_all())
    np.testing.assert_allclose(got, E * math.log(2), rtol=1e-6)


# Of every loss and regulariser


@every
def test_jit_and_vmap_over_members_change_nothing(name):
    value, labels = both(name), labels_of_all()
    outs = [drawn(i) for i in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *outs)
    alone = [value(out, labels) for out in outs]
    found = jax.jit(jax.vmap(value, in_axes=(0, None)))(stacked, labels)
    np.testing.assert_allclose(found, alone, rtol=5e-6, atol=1e-6)


@every
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_extremes_have_finite_values_and_gradients(name, sign):
    out = jax.tree.map(lambda x: sign * 1e4 * jnp.sign(x), drawn())
    spread = {
        n: jnp.clip(out.aux[n], -10.0, 5.0) for n in ("log_std", "latent_log_std")
    }
    out = out._replace(aux=out.aux | spread)  # as the heads cut them
    found = jax.value_and_grad(both(name))(out, labels_of_all())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "odin_orthogonal"])
def test_rows_that_are_masked_have_no_part(name):
    """An example that is padding: NaN everywhere, weight 0, no response.

    odin_orthogonal is of the parameters alone.
    """
    value, whole = both(name), drawn()
    holed = jax.tree.map(lambda x: x.at[1].set(jnp.nan), whole)
    nan = {"strength": [1.0, np.nan, 2.0], "soft": [np.nan] * 3}
    more = {
        field: np.where(
            np.arange(E)[:, None, None] == 1, blank, getattr(labels_of_all(), field)
        )
        for field, blank in (("ratings", np.nan), ("steps", -1.0))
    }
    labels = labels_of_all(
        present=[[1, 1], [0, 0], [1, 1]], weight=[1.0, 0.0, 1.0], **nan, **more
    )._replace(ranks=jnp.asarray([[0, 1], [-1, -1], [0, 1]], jnp.int32))
    got, slope = jax.value_and_grad(value)(holed, labels)
    want = value(whole._replace(), labels)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for leaf in jax.tree.leaves(slope):
        assert np.isfinite(leaf).all() and not np.asarray(leaf)[1].any()
