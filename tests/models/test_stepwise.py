"""From steps to a response: reducers by hand; a step is the end of a shorter text."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logit

from rm_jax import models
from rm_jax.data import pack
from rm_jax.data.loader import Loader
from rm_jax.models import ArchConfig, functions
from rm_jax.models.arch import frozen
from rm_jax.models.reward import scatter, scatter_steps
from rm_jax.models.stepwise import REDUCE, check_reduce, reduced
from rm_jax.types import PackedBatch

S = np.array([[[0.5, -1.0, 2.0, 9.0], [3.0, 9.0, 9.0, 9.0], [9.0] * 4]], np.float32)
SCORED = np.array([[[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]], bool)
END = np.array([[7.0, 7.0, -2.0]], np.float32)
P = expit(np.array([0.5, -1.0, 2.0]))
BY_HAND = {"min": P.min(), "last": P[2], "prod": P.prod(), "mean": P.mean()}
ARCH = ArchConfig(
    vocab_size=97, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8,
    d_ff=24, attention_block=16, head_init="normal", head="steps",
    head_knobs=frozen({"reduce": "last"}),
)  # fmt: skip


@pytest.mark.parametrize("how", sorted(REDUCE))
def test_reducers_by_hand(how):
    got = reduced(how, S, SCORED, END)
    # One step alone is the response; without steps it is the end.
    np.testing.assert_allclose(got, [[logit(BY_HAND[how]), 3.0, -2.0]], rtol=1e-5)


@pytest.mark.parametrize("how", sorted(REDUCE))
@pytest.mark.parametrize("big", [1e4, -1e4, 30.0])
def test_extremes_are_finite(how, big):
    steps = jnp.full((1, 3, 4), big)
    value = lambda s: jnp.sum(reduced(how, s, SCORED, END)[:, :2])
    got, slope = jax.value_and_grad(value)(steps)
    assert np.isfinite(got) and np.isfinite(slope).all()
    assert not np.asarray(slope)[~SCORED].any()
    whole = jax.jit(jax.vmap(lambda s: reduced(how, s, SCORED, END)))
    np.testing.assert_allclose(
        whole(steps[None])[0], reduced(how, steps, SCORED, END), rtol=1e-6
    )


def test_a_product_of_many_sure_steps_keeps_its_digits():
    s = np.full((1, 1, 100), 25.0, np.float32)  # each wrong with probability e^-25
    got = reduced("prod", s, np.ones_like(s, bool), np.zeros((1, 1), np.float32))
    np.testing.assert_allclose(got, 25.0 - np.log(100.0), rtol=1e-5)


def test_an_unknown_reducer_lists_the_known():
    with pytest.raises(ValueError, match="reduce = 'max'; known: .*'last', 'mean'"):
        check_reduce("max")


def test_ends_and_steps_go_where_their_ids_say():
    ids = [[[0, 1, 1], [0, 1, 2], [0, 1, 0], [-1] * 3], [[1, 0, 0], *[[-1] * 3] * 3]]
    row = np.zeros((2, 8), np.int32)
    batch = PackedBatch(row, row, row, row, row[:, :4], np.array(ids, np.int32))
    values = jnp.arange(1.0, 9.0).reshape(2, 4)
    np.testing.assert_array_equal(scatter(values, batch, 2, 2), [[0, 3], [5, 0]])
    want = np.zeros((2, 2, 4))
    want[0, 1, :2] = 1, 2
    np.testing.assert_array_equal(scatter_steps(values, batch, 2, 2), want)


@pytest.fixture
def sets(toy_set):
    """A set with steps, and one with a response for each step, cut off at its end."""
    steps = [[[(2, 1), (5, 1), (6, 1)], []]] * 4
    whole = toy_set([(6, [9, 4])] * 4, steps=steps)
    tokens = np.array(whole.tokens)
    starts = whole.arrays["branch_start"]
    parts = toy_set([(6, [3, 6, 7, 4])] * 4, name="parts")
    at = [np.arange(*parts.arrays["branch_start"][j : j + 2]) for j in range(20)]
    own = np.array(parts.tokens)
    for i in range(4):
        for j, branch in enumerate((0, 1, 1, 1, 2)):
            to = at[5 * i + j]
            begin = starts[3 * i + branch]
            own[to] = tokens[begin : begin + len(to)]
    return whole, dataclasses.replace(parts, tokens=own)


def test_the_score_of_a_step_is_that_of_the_response_that_ends_there(
    sets, fresh_params
):
    params, shapes = fresh_params(ARCH), pack.shapes((16, 32), 64, 2)
    params = params | {"head": params["head"] | {"bias": jnp.float32(0.25)}}
    apply = jax.jit(functions(ARCH)[1], static_argnums=(2, 3, 4))
    found = {}
    for name, data in zip(("whole", "parts"), sets, strict=True):
        for step in Loader(data, shapes, 4, steps=True).in_order():
            for batch, labels in step.chunks:
                e, k = labels.ranks.shape
                out = apply(params, batch, e, k, None)
                for row in np.flatnonzero(labels.ids >= 0):
                    found[name, int(labels.ids[row])] = (
                        out.scores[row], out.aux["steps"][row], out.aux["scored"][row]
                    )  # fmt: skip
    for i in range(4):
        scores, steps, scored = found["whole", i]
        alone, _, none = found["parts", i]
        assert not none.any() and scored.tolist()[0][:4] == [1, 1, 1, 0]
        np.testing.assert_allclose(steps[0, :3], alone[:3], rtol=1e-5, atol=1e-6)
        # The reducer is "last"; the other response has no steps.
        np.testing.assert_allclose(scores, [alone[2], alone[3]], rtol=1e-5, atol=1e-6)


def test_other_pooling_than_the_last_token_is_refused():
    model = {"arch": "decoder", "head": {"name": "steps", "init": "zero"}}
    with pytest.raises(ValueError, match="pooling = 'mean': set it to 'last'"):
        models.make_arch(model, 97, "mean")
