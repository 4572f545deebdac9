"""Attention: the mask by its definition, blocks = dense, what nobody may see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax.models import attention, rope
from rm_jax.models.attention import Place

T, BLOCK, HEADS, GROUPS, DIM = 64, 16, 4, 2, 8
# A row is segments of (prompt length, response lengths); the rest is padding.
ROWS = (
    [(20, [9, 1, 7]), (3, [4]), (5, [6, 5])],  # segments across block borders
    [(1, [1]), (14, [2]), (30, [10, 3])],
    [(40, [12, 12])],  # a full row of one segment
)


def make_place(rows, t=T):
    shape = (len(rows), t)
    position, segment, branch = (np.zeros(shape, np.int32) for _ in range(3))
    for b, row in enumerate(rows):
        at = 0
        for s, (prompt, responses) in enumerate(row, start=1):
            for k, n in enumerate([prompt, *responses]):
                start = prompt if k else 0
                cut = slice(at, at + n)
                position[b, cut], segment[b, cut] = np.arange(start, start + n), s
                branch[b, cut] = k
                at += n
        assert at <= t
    index = np.broadcast_to(np.arange(t, dtype=np.int32), shape)
    return Place(index, position, segment, branch)


def sees(p, b, i, j, window, causal):
    """The rule of types.PackedBatch, for one pair of tokens."""
    gap = p.position[b, i] - p.position[b, j]
    return (
        (not causal or j <= i)
        and p.segment[b, i] == p.segment[b, j]
        and (not causal or p.branch[b, j] in (0, p.branch[b, i]))
        and (not window or gap < window)
        and (not window or causal or -gap < window)
    )


def mask_of(p, window, causal=True):
    n, t = p.index.shape
    return np.array(
        [
            [[sees(p, b, i, j, window, causal) for j in range(t)] for i in range(t)]
            for b in range(n)
        ]
    )


@functools.cache
def qkv(b=3, t=T):
    rng = np.random.default_rng(0)
    draw = lambda n: rng.standard_normal((b, t, n, DIM)).astype(np.float32)
    return draw(HEADS), draw(GROUPS), draw(GROUPS)


@functools.partial(jax.jit, static_argnums=(4, 5))
def blocked(q, k, v, place, window, block):
    first = attention.first_blocks(place, block)
    return attention.blocked(q, k, v, place, first, window, block)


@functools.partial(jax.jit, static_argnums=4)
def dense(q, k, v, place, window):
    return attention.attend(q, k, v, attention.tree_mask(place, place, window, True))


def plain(q, k, v, place, window):
    """Softmax attention as in a textbook, differentiated by jax."""
    k, v = (jnp.repeat(x, HEADS // GROUPS, axis=2) for x in (k, v))
    mask = attention.tree_mask(place, place, window, True)[:, None]
    scores = jnp.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(DIM)
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhij,bjhd->bihd", weights, v)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 1, 4])
def test_mask_is_its_definition(window, causal):
    p = make_place(ROWS[:2])
    got = attention.tree_mask(p, p, window, causal)
    np.testing.assert_array_equal(np.asarray(got), mask_of(p, window, causal))


def test_mask_of_some_tokens_is_rows_of_the_whole():
    p = make_place(ROWS)
    slots = np.array([[28, 29, 0], [1, 17, 60], [51, 63, 63]], np.int32)
    some = attention.tree_mask(p.take(slots), p, 4, True)
    whole = np.asarray(attention.tree_mask(p, p, 4, True))
    for b in range(3):
        np.testing.assert_array_equal(np.asarray(some)[b], whole[b, slots[b]])


@pytest.mark.parametrize("window", [0, 4])
def test_attend_is_softmax_by_hand(window):
    p, (q, k, v) = make_place(ROWS), qkv()
    got, mask = np.asarray(dense(q, k, v, p, window)), mask_of(p, window)
    for b, i, h in [(0, 0, 0), (0, 28, 1), (0, 63, 3), (1, 40, 2), (2, 63, 0)]:
        g = h // (HEADS // GROUPS)  # query heads 0, 1 share key head 0
        x = k[b, :, g].astype(np.float64) @ q[b, i, h] / np.sqrt(DIM)
        w = np.where(mask[b, i], np.exp(x - x.max()), 0)
        want = (w / w.sum()) @ v[b, :, g]
        np.testing.assert_allclose(got[b, i, h], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("t", [T, 48])
def test_blocked_and_dense_are_plain_with_gradients(window, t):
    rows = ROWS if t == T else ([(13, [5, 6]), (2, [20])], [(1, [2]), (30, [9])])
    p, (q, k, v) = make_place(rows, t), qkv(len(rows), t)
    pull = np.random.default_rng(1).standard_normal(q.shape).astype(np.float32)

    @jax.jit
    def every(q, k, v):
        out = []
        for f in (
            lambda *x: blocked(*x, p, window, BLOCK),
            lambda *x: dense(*x, p, window),
            lambda *x: plain(*x, p, window),
        ):
            y, back = jax.vjp(f, q, k, v)
            out.append((y, *back(jnp.asarray(pull))))
        return out

    fast, slow, want = every(q, k, v)
    for found in (fast, slow):
        for a, b in zip(found, want, strict=True):
            assert np.abs(np.asarray(b)).max() > 0.1
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("how", ["dense", "blocked"])
def test_cap_and_scale_with_gradients(how):
    """Scores s are cap tanh(s / cap), against a textbook differentiated by jax."""
    place, cap, scale = make_place(ROWS), 1.5, 0.7

    def ours(q, k, v):
        if how == "blocked":
            first = attention.first_blocks(place, 8)
            return attention.blocked(q, k, v, place, first, 4, 8, scale, cap)
        mask = attention.tree_mask(place, place, 4, True)
        return attention.attend(q, k, v, mask, scale, cap)

    def textbook(q, k, v):
        k, v = (jnp.repeat(x, HEADS // GROUPS, axis=2) for x in (k, v))
        mask = attention.tree_mask(place, place, 4, True)[:, None]
        s = cap * jnp.tanh(jnp.einsum("bihd,bjhd->bhij", q, k) * scale / cap)
        weights = jax.nn.softmax(jnp.where(mask, s, -jnp.inf), axis=-1)
        return jnp.einsum("bhij,bjhd->bihd", weights, v)

    aim = np.random.default_rng(1).standard_normal(qkv()[0].shape)
    want, back = jax.vjp(textbook, *qkv())
    got, ours_back = jax.vjp(jax.jit(ours), *qkv())
    real = np.asarray(place.segment > 0)[..., None, None]
    np.testing.assert_allclose(got * real, want * real, atol=1e-5)
    aim = (aim * real).astype(np.float32)
    for mine, its in zip(ours_back(aim), back(aim), strict=True):
        np.testing.assert_allclose(mine, its, atol=2e-5)


def test_gradients_in_bfloat16_are_close():
    p = make_place(ROWS)
    pull = np.random.default_rng(1).standard_normal((3, T, HEADS, DIM))

    @jax.jit
    def both(q, k, v):
        out = []
        for f, kind in ((dense, jnp.bfloat16), (plain, jnp.float32)):
            y, back = jax.vjp(
                lambda *x, f=f: f(*x, p, 0), *(x.astype(kind) for x in (q, k, v))
            )
            out.append((y, *back(jnp.asarray(pull, kind))))
        return out

    for a, b in zip(*both(*qkv()), strict=True):
        assert a.dtype == jnp.bfloat16
        # bfloat16 has 8 bits; a sum of many roundings stays within some of the largest.
        assert np.abs(np.asarray(a, np.float32) - b).max() < 0.03 * np.abs(b).max()


def test_first_blocks_by_hand():
    # Row 0: segments begin at 0, 37, 44 and its padding at 60; row 1: 0, 2, 18, 61.
    p = make_place(ROWS[:2])
    one = attention.first_blocks(Place(*(x[:1] for x in p)), BLOCK)
    np.testing.assert_array_equal(one, [0, 0, 0, 2])  # token 48 belongs to 44's segment
    other = attention.first_blocks(Place(*(x[1:] for x in p)), BLOCK)
    np.testing.assert_array_equal(other, [0, 0, 1, 1])
    np.testing.assert_array_equal(attention.first_blocks(p, BLOCK), [0, 0, 0, 1])


def test_blocks_that_nobody_sees_are_not_touched():
    p = make_place([[(10, [6]), (16, [16]), (8, [8])]])
    q, k, v = (x.copy() for x in qkv(1))
    want = np.asarray(dense(q, k, v, p, 0))
    k[:, :BLOCK], v[:, :BLOCK] = np.nan, np.nan  # the first segment
    got = np.asarray(blocked(q, k, v, p, 0, BLOCK))
    assert np.isnan(got[:, :BLOCK]).all()
    np.testing.assert_allclose(got[:, BLOCK:], want[:, BLOCK:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("how", ["blocked", "dense"])
def test_gradient_is_exactly_zero_where_the_mask_says_so(how, window):
    p, (q, k, v) = make_place(ROWS[:1]), qkv(1)
    run = (
        (lambda *x: blocked(*x, p, window, BLOCK))
        if how == "blocked"
        else (lambda *x: dense(*x, p, window))
    )
    row = lambda i, *x: jnp.sum(run(*x)[0, i] * (1 + jnp.arange(DIM))[None])
    grads = jax.jit(jax.vmap(jax.grad(row, (1, 2, 3)), (0, None, None, None)))
    dq, dk, dv = (np.abs(g).max((1, 3, 4)) for g in grads(jnp.arange(T), q, k, v))
    seen = mask_of(p, window)[0]
    assert (dv[seen] > 0).all() and (dv[~seen] == 0).all()
    assert (dk[~seen] == 0).all() and (dq[~np.eye(T, dtype=bool)] == 0).all()
    # A token that sees itself alone has a softmax of 1: nothing for its key.
    several = seen & (seen.sum(1) > 1)[:, None]
    assert (dk[several] > 0).mean() > 0.99
    branch = p.branch[0]
    sibling = (branch[:, None] > 0) & (branch > 0) & (branch[:, None] != branch)
    assert sibling[29, 20] and dv[29, 20] == 0  # the rule itself, spelled out once
    assert (dv[~np.tri(T, dtype=bool)] == 0).all() and (dv[sibling] == 0).all()


def rotated(x, position, base=10000.0):
    at = np.full((1, 1), position, np.int32)
    return rope.rotate(x, rope.turns(at, x.shape[-1], base))


def test_rotation_by_hand():
    x = np.array([3.0, 1.0, 4.0, 2.0], np.float32).reshape(1, 1, 1, 4)
    got = rotated(x, 2, base=100.0)
    # Pairs (3, 4) by 2 radians and (1, 2) by 2 * 100^(-1/2) = 0.2.
    c, s, d, u = np.cos(2), np.sin(2), np.cos(0.2), np.sin(0.2)
    want = [3 * c - 4 * s, 1 * d - 2 * u, 4 * c + 3 * s, 2 * d + 1 * u]
    np.testing.assert_allclose(np.ravel(got), want, rtol=1e-6)
    np.testing.assert_array_equal(rotated(x, 0, base=100.0), x)


def test_products_of_rotated_depend_on_distance_only():
    q, k, _ = qkv()
    q, k = q[:1, :1, :1], k[:1, :1, :1]
    product = lambda i, j: float(jnp.sum(rotated(q, i) * rotated(k, j)))
    assert product(5, 3) == pytest.approx(product(105, 103), abs=2e-5)
    assert product(5, 3) == pytest.approx(product(2, 0), abs=1e-5)
    assert abs(product(5, 3) - product(3, 5)) > 0.01
