"""Tree-masked attention, computed only in the blocks that the mask allows.

A row holds several segments; each is a prompt and branches that see it but not one
another (types.PackedBatch). Keys of a query block reach back to where the oldest of its
segments begins, so the blocks before that are never touched.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30  # finite: a row of the mask is never empty, a token sees itself


class Place(NamedTuple):
    """Where each token (or scored token) stands; what the mask is made of."""

    index: Int[Array, "b n"]
    position: Int[Array, "b n"]
    segment: Int[Array, "b n"]
    branch: Int[Array, "b n"]

    def take(self, slots: Int[Array, "b s"]) -> "Place":
        """The places of scored tokens."""
        return Place(*(jnp.take_along_axis(x, slots, axis=1) for x in self))


def tree_mask(
    query: Place, key: Place, window: int, causal: bool
) -> Bool[Array, "b q k"]:
    """True where a query token sees a key token.

    Same segment and, if `causal`, key in the prompt or in the query's own branch and
    not after it; with a window W, fewer than W positions before it.
    """
    q = Place(*(x[:, :, None] for x in query))
    k = Place(*(x[:, None, :] for x in key))
    seen = q.segment == k.segment
    if causal:
        seen &= (k.branch == 0) | (k.branch == q.branch)
        seen &= k.index <= q.index
    if window:
        seen &= q.position - k.position < window
        if not causal:
            seen &= k.position - q.position < window
    return seen


def attend(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b k g d"],
    v: Float[Array, "b k g d"],
    mask: Bool[Array, "b q k"],
    scale: float | None = None,
    cap: float = 0.0,
) -> Float[Array, "b q h d"]:
    """softmax(s) v, s = q k^T / sqrt(d), in float32; h is a multiple of g.

    Args:
      q: queries.
      k: keys.
      v: values.
      mask: which keys each query sees.
      scale: of q k^T in place of 1 / sqrt(d).
      cap: s becomes cap tanh(s / cap) (Gemma 2, arXiv:2408.00118); 0 is off.
    """
    b, n, h, d = q.shape
    g = k.shape[2]
    # The barrier keeps the mask from being worked out again for every head and pass.
    bias = jax.lax.optimization_barrier(jnp.where(mask, 0.0, MASKED))
    # Heads first, and a group's query heads side by side: plain batched products, which
    # run several times faster on CPU than the same sums over transposed axes.
    q = q * (d**-0.5 if scale is None else scale)
    q = q.transpose(0, 2, 1, 3).reshape(b, g, h // g * n, d)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    out = _softmax_average(cap, q, k, v, bias)
    return out.reshape(b, h, n, d).transpose(0, 2, 1, 3)


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


def _similarity(x: Array, y: Array) -> Array:
    """x y^T over the last axes."""
    return jnp.einsum("bgqd,bgkd->bgqk", x, y, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax_average(
    cap: float,
    q: Float[Array, "b g rq d"],
    k: Float[Array, "b g k d"],
    v: Float[Array, "b g k d"],
    bias: Float[Array, "b q k"],
) -> Float[Array, "b g rq d"]:
    """softmax(q k^T + bias) v, the bias the same for all g groups of r heads."""
    return _forward(cap, q, k, v, bias)[0]


def _forward(cap, q, k, v, bias):
    b, g, n, _ = q.shape
    scores = _similarity(q, k)
    if cap:
        scores = cap * jnp.tanh(scores / cap)
    scores = scores.reshape(b, g, -1, *bias.shape[1:])
    scores = scores + bias[:, None, None]
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    weights = weights.reshape(b, g, n, -1)
    # Dividing the sums, not the weights, spares two passes over the largest array.
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = _product(weights.astype(v.dtype), v) / total
    return out.astype(v.dtype), (q, k, v, bias, weights, total, out)


def _backward(cap, saved, grad):
    """By hand, so that no product contracts the largest array over its first axis.

    With P = weights / total: dV = P^T dO and dS = P (dO V^T - rowsum(dO O)); P^T dO is
    computed as (dO^T P)^T, three times faster on CPU. A cap multiplies dS with
    1 - tanh^2(S / cap).
    """
    q, k, v, bias, weights, total, out = saved
    dtype = v.dtype
    grad = grad.astype(jnp.float32)
    share = (grad / total).astype(dtype)
    mean = jnp.sum(grad * out, axis=-1, keepdims=True) / total
    ds = weights * (_similarity(share, v) - mean)
    if cap:
        ds = ds * (1 - jnp.square(jnp.tanh(_similarity(q, k) / cap)))
    ds = ds.astype(dtype)
    dv = _product(share.swapaxes(-1, -2), weights.astype(dtype)).swapaxes(-1, -2)
    dk = _product(q.swapaxes(-1, -2), ds).swapaxes(-1, -2)
    dq = _product(ds, k)
    return dq.astype(dtype), dk.astype(dtype), dv.astype(dtype), jnp.zeros_like(bias)


_softmax_average.defvjp(_forward, _backward)


def first_blocks(place: Place, block: int) -> Int[Array, "n"]:
    """For each block of queries, the first block of keys that any row of it needs."""
    b, t = place.segment.shape
    starts = jnp.concatenate(
        [jnp.ones((b, 1), bool), place.segment[:, 1:] != place.segment[:, :-1]], axis=1
    )
    begin = jax.lax.cummax(jnp.where(starts, place.index, 0), axis=1)
    return jnp.min(begin[:, ::block], axis=0) // block


def blocked(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b t g d"],
    v: Float[Array, "b t g d"],
    place: Place,
    first: Int[Array, "n"],
    window: int,
    block: int,
    scale: float | None = None,
    cap: float = 0.0,
) -> Float[Array, "b t h d"]:
    """Causal tree attention by blocks of queries.

    Args:
      q: queries, rotated.
      k: keys, rotated.
      v: values.
      place: of every token.
      first: `first_blocks(place, block)`, computed once for all layers.
      window: in positions; 0 is unlimited.
      block: tokens of a block.
      scale: as of `attend`.
      cap: as of `attend`.

    Block i of the queries takes its keys from the smallest of 1, 2, 4, ... blocks that
    reaches back from i to `first[i]`: a `lax.switch` inside a `lax.map`, so one body is
    compiled for any length and what is not needed is not computed. Differentiable.
    """
    b, t, h, d = q.shape
    n = t // block
    widths = sorted({min(2**p, n) for p in range(n.bit_length() + 1)})

    def queries(i):
        start, need = i * block, i + 1 - first[i]
        asked = _slice(q, start, block)
        at = Place(*(_slice(x, start, block) for x in place))

        def over(width):
            low = jnp.maximum(i + 1 - width, 0) * block
            keys = [_slice(x, low, width * block) for x in (k, v, *place)]
            mask = tree_mask(at, Place(*keys[2:]), window, True)
            return attend(asked, keys[0], keys[1], mask, scale, cap)

        choice = sum((need > w).astype(jnp.int32) for w in widths[:-1])
        return jax.lax.switch(choice, [lambda w=w: over(w) for w in widths])

    # Recomputed in the backward pass: a switch would keep what every branch might need.
    out = jax.lax.map(jax.checkpoint(queries), jnp.arange(n))
    return out.transpose(1, 0, 2, 3, 4).reshape(b, t, h, d)


def _slice(x: Array, start: Int[Array, ""], size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)


def attend_disentangled(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b k h d"],
    v: Float[Array, "b k h d"],
    mask: Bool[Array, "b q k"],
    key_of: Float[Array, "r h d"],
    query_of: Float[Array, "r h d"],
    row: Int[Array, "b q k"],
    scale: float,
) -> Float[Array, "b q h d"]:
    """softmax(scale s) v with content-to-position and position-to-content terms.

    s_ij = q_i . k_j + q_i . key_of[row_ij] + k_j . query_of[row_ij] (DeBERTa, He et al.
    2021, arXiv:2006.03654, equation 4).

    Args:
      q: queries.
      k: keys.
      v: values.
      mask: which keys each query sees.
      key_of: keys of the relative distances.
      query_of: queries of them.
      row: of the distance from query i to key j (`distance_rows`).
      scale: of s.
    """
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = dot("bqhd,bkhd->bhqk", q, k)
    c2p = dot("bqhd,rhd->bhqr", q, key_of)
    p2c = dot("bkhd,rhd->bhkr", k, query_of)
    at = row[:, None]
    scores += jnp.take_along_axis(c2p, at, axis=-1)
    back = jnp.take_along_axis(p2c, at.swapaxes(-1, -2), axis=-1)
    scores += back.swapaxes(-1, -2)
    scores = jnp.where(mask[:, None], scores * scale, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return dot("bhqk,bkhd->bqhd", weights, v).astype(v.dtype)


def distance_rows(
    query: Int[Array, "b q"], key: Int[Array, "b k"], rows: int, distance: int
) -> Int[Array, "b q k"]:
    """Row of the table of relative distances, of each query and key.

    With B = rows / 2 buckets a side: i - j itself up to B / 2, beyond it logarithmic up
    to `distance`, shifted by B and kept within the table (DeBERTa v2's log buckets).
    """
    buckets = rows // 2
    middle = buckets // 2
    apart = query[:, :, None] - key[:, None, :]
    far = jnp.maximum(jnp.abs(apart), middle).astype(jnp.float32)
    steps = jnp.log(far / middle) / math.log((distance - 1) / middle) * (middle - 1)
    far = jnp.sign(apart) * (jnp.ceil(steps).astype(jnp.int32) + middle)
    near = jnp.abs(apart) <= middle
    return jnp.clip(jnp.where(near, apart, far) + buckets, 0, rows - 1)
