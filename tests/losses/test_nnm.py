"""The nuclear norm of members' adapters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax.losses.nnm import lora_nnm, nuclear
from rm_jax.losses.regularize import WeightKnobs


def tree(a):
    return {"layer_0": {"attn": {"q": {"lora": {"a": jnp.asarray(a), "b": 0.0}}}}}


def ratio(a):
    return -float(lora_nnm(tree(a), WeightKnobs(1.0)))


def test_orthogonal_rows_reach_the_root_of_their_number():
    a = np.eye(6)[:, :4].reshape(6, 2, 2).transpose(1, 0, 2)  # [m 2, n 6, r 2]
    assert ratio(a) == pytest.approx(2.0, rel=1e-6)


def test_identical_members_are_worse_and_a_rank_of_one_is_worst():
    a = np.eye(6)[:, :2]
    assert ratio(np.stack([a, a])) == pytest.approx(2**0.5, rel=1e-6)
    assert ratio(np.ones((2, 6, 2))) == pytest.approx(1.0, rel=1e-6)


def test_any_matrix_is_numpys():
    a = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
    rows = a.transpose(0, 2, 1).reshape(6, 5)
    want = np.linalg.norm(rows, "nuc") / np.linalg.norm(rows)
    assert ratio(a) == pytest.approx(want, rel=1e-5)


def test_stacked_layers_are_averaged():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(2, 3, 5, 2)).astype(np.float32)
    each = [ratio(a[:, g]) for g in range(3)]
    assert ratio(a) == pytest.approx(np.mean(each), rel=1e-5)


def test_gradient_is_that_of_differences():
    a = jnp.asarray(np.random.default_rng(2).normal(size=(4, 3)), jnp.float32)
    found = jax.grad(nuclear)(a)
    u, _, v = np.linalg.svd(np.asarray(a, np.float64), full_matrices=False)
    np.testing.assert_allclose(found, u @ v, atol=1e-5)


@pytest.mark.parametrize("a", [np.zeros((3, 4)), np.ones((3, 4)), np.eye(3, 4)])
def test_gradients_are_finite_where_singular_values_are_zero_or_equal(a):
    found = jax.jit(jax.grad(nuclear))(jnp.asarray(a, jnp.float32))
    assert np.isfinite(found).all()
    if a.any():
        assert np.linalg.norm(found, 2) == pytest.approx(1.0, rel=1e-5)


def test_adapters_of_zeros_have_no_gradient():
    a = jnp.zeros((2, 3, 2))
    value, found = jax.value_and_grad(lambda a: lora_nnm(tree(a), WeightKnobs(1.0)))(a)
    assert value == 0 and not np.asarray(found).any()


def test_it_needs_adapters():
    with pytest.raises(ValueError, match="config.model.lora.rank"):
        lora_nnm({"head": jnp.ones((1, 3))}, WeightKnobs(1.0))
