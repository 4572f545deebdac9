"""Tree-masked attention, computed only in the blocks that the mask allows.

A row holds several segments; each is a prompt and branches that see it but not one
another (types.PackedBatch). Keys of a query block reach back to where the oldest of its
segments begins, so the blocks before that are never touched.
"""

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
) -> Float[Array, "b q h d"]:
    """softmax(q k^T / sqrt(d)) v, the softmax in float32; h is a multiple of g."""
    b, n, h, d = q.shape
    g = k.shape[2]
    # The barrier keeps the mask from being worked out again for every head and pass.
    bias = jax.lax.optimization_barrier(jnp.where(mask, 0.0, MASKED))
    # Heads first, and a group's query heads side by side: plain batched products, which
    # run several times faster on CPU than the same sums over transposed axes.
    q = (q * d**-0.5).transpose(0, 2, 1, 3).reshape(b, g, h // g * n, d)
    out = _softmax_average(q, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), bias)
    return out.reshape(b, h, n, d).transpose(0, 2, 1, 3)


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


def _similarity(x: Array, y: Array) -> Array:
    """x y^T over the last axes."""
    return jnp.einsum("bgqd,bgkd->bgqk", x, y, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _softmax_average(
    q: Float[Array, "b g rq d"],
    k: Float[Array, "b g k d"],
    v: Float[Array, "b g k d"],
    bias: Float[Array, "b q k"],
) -> Float[Array, "b g rq d"]:
    """softmax(q k^T + bias) v, the bias the same for all g groups of r heads."""
    return _forward(q, k, v, bias)[0]


def _forward(q, k, v, bias):
    b, g, n, _ = q.shape
    scores = _similarity(q, k).reshape(b, g, -1, *bias.shape[1:])
    scores = scores + bias[:, None, None]
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    weights = weights.reshape(b, g, n, -1)
    # Dividing the sums, not the weights, spares two passes over the largest array.
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = _product(weights.astype(v.dtype), v) / total
    return out.astype(v.dtype), (q, k, v, bias, weights, total, out)


def _backward(saved, grad):
    """By hand, so that no product contracts the largest array over its first axis.

    With P = weights / total: dV = P^T dO and dS = P (dO V^T - rowsum(dO O)); P^T dO is
    computed as (dO^T P)^T, three times faster on CPU.
    """
    q, k, v, bias, weights, total, out = saved
    dtype = v.dtype
    grad = grad.astype(jnp.float32)
    share = (grad / total).astype(dtype)
    mean = jnp.sum(grad * out, axis=-1, keepdims=True) / total
    ds = (weights * (_similarity(share, v) - mean)).astype(dtype)
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
            return attend(asked, keys[0], keys[1], mask)

        choice = sum((need > w).astype(jnp.int32) for w in widths[:-1])
        return jax.lax.switch(choice, [lambda w=w: over(w) for w in widths])

    # Recomputed in the backward pass: a switch would keep what every branch might need.
    out = jax.lax.map(jax.checkpoint(queries), jnp.arange(n))
    return out.transpose(1, 0, 2, 3, 4).reshape(b, t, h, d)


def _slice(x: Array, start: Int[Array, ""], size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)


class Turns(NamedTuple):
    """Cosine and sine of every rotary angle; worked out once for all layers."""

    cos: Float[Array, "b n half"]
    sin: Float[Array, "b n half"]


def turns(positions: Int[Array, "b n"], head_dim: int, base: float) -> Turns:
    """The angles position * base^(-2 i / d), i < d / 2 (Su et al. 2021)."""
    half = head_dim // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None].astype(jnp.float32) * frequency[None, None]
    return Turns(jnp.cos(angle), jnp.sin(angle))


def rotate(x: Float[Array, "b n h d"], by: Turns) -> Float[Array, "b n h d"]:
    """Rotary position embedding, halves layout as in Llama.

    Feature i of the first half is turned with feature i of the second half.
    """
    cos, sin = by.cos[:, :, None], by.sin[:, :, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)
