"""Regularisers that read more than scores: ODIN, GRM, InfoRM, the winners' mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made import KEY, knobs_of, make_labels
from scipy import stats

from rm_jax.losses import REGULARIZERS, choose, example_terms, global_terms, sums
from rm_jax.losses.grm import grm_dpo, grm_sft
from rm_jax.losses.odin import odin_orthogonal
from rm_jax.losses.vib import vib, vib_averaged
from rm_jax.types import RewardOutput


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def sp(x):
    return np.logaddexp(0.0, x)


def out(scores, logp=None, **aux):
    f32 = lambda x: jnp.asarray(x, jnp.float32)
    aux = {name: f32(v) for name, v in aux.items()}
    return RewardOutput(f32(scores), aux, None if logp is None else f32(logp))


def whole(name, chunks, **knobs):
    """A regulariser of sums over several chunks, without its weight."""
    config = {"name": "bt", "regularizers": {name: {"weight": 1.0, **knobs}}}
    objective = choose(config)
    totals = [sums(objective, o, labels, objective.hparams) for o, labels in chunks]
    totals = jax.tree.map(lambda *x: sum(x), *totals)
    return float(global_terms(objective, totals, objective.hparams)[name])


def batch(seed=0, e=12, k=3):
    rng = np.random.default_rng(seed)
    quality, length = rng.normal(size=(2, e, k)).astype(np.float32)
    lengths = rng.integers(5, 400, (e, k))
    labels = make_labels(np.tile(np.arange(k), (e, 1)), lengths=lengths)
    return out(quality + length, quality=quality, length=length), labels


def part(o, labels, rows):
    cut = lambda x: x if x is None else x[rows]
    return jax.tree.map(cut, o), jax.tree.map(cut, labels)


@pytest.mark.parametrize("cuts", [(12,), (5, 7), (3, 3, 3, 3)])
def test_odin_is_scipys_correlations_under_any_chunking(cuts):
    o, labels = batch()
    at = np.cumsum((0, *cuts))
    chunks = [
        part(o, labels, slice(a, b)) for a, b in zip(at[:-1], at[1:], strict=True)
    ]
    rho = {
        name: stats.pearsonr(np.ravel(o.aux[name]), np.ravel(labels.lengths)).statistic
        for name in ("quality", "length")
    }
    want = abs(rho["quality"]) + 1 - rho["length"]
    assert whole("odin", chunks) == pytest.approx(want, abs=2e-5)


def test_odin_at_its_best_and_worst():
    _, labels = batch()
    l = np.asarray(labels.lengths, np.float32)
    flat = np.zeros_like(l)
    best = out(flat, quality=flat, length=l / 100)
    worst = out(flat, quality=-l, length=-l)
    assert whole("odin", [(best, labels)]) == pytest.approx(0.0, abs=1e-4)
    assert whole("odin", [(worst, labels)]) == pytest.approx(3.0, abs=1e-4)


@pytest.mark.parametrize("angle", [0.0, 0.3, np.pi / 2, 2.5])
def test_odin_orthogonal_is_the_cosine(angle):
    head = {
        "quality": jnp.asarray([2.0, 0.0, 0.0]),
        "length": 5 * jnp.asarray([np.cos(angle), np.sin(angle), 0.0], jnp.float32),
    }
    h = knobs_of(odin_orthogonal)
    assert h.weight == 1.0
    got = odin_orthogonal({"head": head}, h)
    assert float(got) == pytest.approx(abs(np.cos(angle)), abs=1e-6)
    zero = {"head": jax.tree.map(jnp.zeros_like, head)}
    value, slope = jax.value_and_grad(odin_orthogonal)(zero, h)
    assert value == 0 and all(np.isfinite(x).all() for x in jax.tree.leaves(slope))


LOGP = [[-3.0, -50.0, -1.0], [-2.0, -4.0, -8.0]]


def test_grm_sft_is_of_the_preferred_response():
    labels = make_labels([[0, 1, -1], [1, 0, 0]])
    got = grm_sft(out(np.zeros((2, 3)), LOGP), labels, knobs_of(grm_sft), KEY)
    # In the second the pairs are (1, 0) and (2, 0); 1 and 2 are tied.
    np.testing.assert_allclose(got, [sp(0.3), (sp(0.4) + sp(0.8)) / 2], rtol=1e-6)
    soft = make_labels([[0, 1, -1], [1, 0, -1]], soft=[0.25, 1.0])
    got = grm_sft(out(np.zeros((2, 3)), LOGP), soft, knobs_of(grm_sft, beta=1.0), KEY)
    np.testing.assert_allclose(got, [0.25 * sp(3) + 0.75 * sp(50), sp(2)], rtol=1e-6)


def test_grm_dpo_is_of_the_log_ratios():
    reference = [[-2.0, -40.0, -1.0], [-2.0, np.nan, -1.0]]
    labels = make_labels([[0, 1, -1], [1, 0, -1]], reference_logp=reference)
    got = grm_dpo(out(np.zeros((2, 3)), LOGP), labels, knobs_of(grm_dpo), KEY)
    # Ratios: -1 and -10; 0 and not known, which leaves the example without a pair.
    np.testing.assert_allclose(got, [sp(-0.1 * 9), 0.0], rtol=1e-6)


def test_grm_dpo_leaves_a_pair_without_a_reference_out():
    """Of three responses one has none: only the pair of the two others counts."""
    labels = make_labels([[0, 1, 2]], reference_logp=[[-3.0, np.nan, -1.0]])
    ours = out([[0.0] * 3], logp=[[-2.0, -9.0, -1.5]])
    got = grm_dpo(ours, labels, knobs_of(grm_dpo), KEY)
    np.testing.assert_allclose(got, [sp(-0.1 * (1.0 - -0.5))], rtol=1e-5)


def test_grm_is_finite_for_long_responses_and_ties_cost_nothing():
    labels = make_labels([[0, 1], [0, 0]])
    logp = [[-1e4, -2e4], [-1e4, -1e4]]
    value = lambda x: jnp.sum(grm_sft(out(x * 0, x), labels, knobs_of(grm_sft), KEY))
    slope = jax.grad(value)(jnp.asarray(logp))
    np.testing.assert_allclose(slope, [[-0.1, 0.0], [0.0, 0.0]], rtol=1e-6)


def test_vib_is_scipys_divergence():
    rng = np.random.default_rng(0)
    mean, log_std = rng.normal(size=(2, 2, 3, 4))
    o = out(np.zeros((2, 3)), latent_mean=mean, latent_log_std=log_std)
    labels = make_labels([[0, 1, 2], [0, 1, -1]], present=[[1, 1, 1], [1, 1, 0]])
    # KL(q || p) = cross-entropy - entropy, the first by E_q[-log p].
    cross = 0.5 * np.log(2 * np.pi) + 0.5 * (mean**2 + np.exp(2 * log_std))
    kl = (cross - stats.norm.entropy(0, np.exp(log_std))).sum(-1)
    want = [kl[0].mean(), kl[1, :2].mean()]
    np.testing.assert_allclose(vib(o, labels, knobs_of(vib), KEY), want, rtol=1e-5)


def test_the_average_of_the_official_code_lets_opposite_means_pass():
    labels = make_labels([[0, 1]])
    opposite = np.zeros((1, 2, 2))
    opposite[..., 0], opposite[..., 1] = 3.0, -3.0
    o = out(np.zeros((1, 2)), latent_mean=opposite, latent_log_std=opposite * 0)
    assert float(vib_averaged(o, labels, knobs_of(vib), KEY)[0]) == 0.0
    assert float(vib(o, labels, knobs_of(vib), KEY)[0]) == 9.0


def test_pos_reg_is_of_the_mean_of_the_batch():
    scores = np.asarray([[1.0, 0.0], [-2.0, 5.0], [7.0, 7.0]])
    labels = make_labels([[0, 1], [0, 1], [0, 0]], weight=[1, 3, 1])
    want = sp(-(1.0 * 1 + 3.0 * -2.0) / 4.0)  # a tie has no winner
    both = out(scores), labels
    assert whole("pos_reg", [both]) == pytest.approx(want, rel=1e-6)
    halves = [part(*both, slice(0, 1)), part(*both, slice(1, 3))]
    assert whole("pos_reg", halves) == pytest.approx(want, rel=1e-6)


def test_pos_reg_takes_the_winner_of_each_pair_whichever_it_is():
    """Of [2, 0, 1] with ranks (1, 0, 2) they are responses 1, 0 and 1; a soft label
    takes both by their chances; an example weighs as much however many pairs it has."""
    scores = [[2.0, -1.0, 3.0], [4.0, 1.0, 0.0]]
    labels = make_labels([[1, 0, 2], [0, 1, -1]], soft=[np.nan, 0.25])
    want = sp(-(0.5 * (-1 + 2 - 1) / 3 + 0.5 * (0.25 * 4 + 0.75 * 1)))
    assert whole("pos_reg", [(out(scores), labels)]) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("name", sorted(REGULARIZERS))
def test_a_regularizer_needs_what_it_reads(name):
    """Without its outputs it fails when traced; with them it is finite at extremes."""
    reg = REGULARIZERS[name]
    objective = choose({"name": "bt", "regularizers": {name: {}}})
    rng = np.random.default_rng(0)
    shapes = {"latent_mean": (3,), "latent_log_std": (3,)}
    aux = {n: rng.normal(size=(2, 2, *shapes.get(n, ()))) for n in objective.outputs}
    labels = make_labels([[0, 1], [1, 0]], reference_logp=np.full((2, 2), -1e4))
    o = out(np.full((2, 2), 1e4), np.full((2, 2), -1e4), **aux)
    if reg.per_example is not None:
        found = example_terms(objective, o, labels, objective.hparams, KEY)
        assert np.isfinite(found[name]).all()
        if aux:
            with pytest.raises(KeyError):
                example_terms(
                    objective, o._replace(aux={}), labels, objective.hparams, KEY
                )
    elif reg.stats is not None:
        assert np.isfinite(whole(name, [(o, labels)]))
