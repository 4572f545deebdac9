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

    Same segment, key in the prompt or in the query's own branch, and, if `causal`, not
    after it; with a window W, fewer than W positions before it.
    """
    q = Place(*(x[:, :, None] for x in query))
    k = Place(*(x[:, None, :] for x in key))
    seen = (q.segment == k.segment) & ((k.branch == 0) | (k.branch == q.branch))
    if causal:
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
    k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    scores = jnp.matmul(q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(b, g, h // g, n, -1) + bias[:, None, None]
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1).reshape(b, h, n, 1)
    weights = weights.astype(v.dtype).reshape(b, g, h // g * n, -1)
    out = jnp.matmul(weights, v, preferred_element_type=jnp.float32)
    # Dividing the sums, not the weights, spares two passes over the largest array.
    out = (out.reshape(b, h, n, d) / total).astype(v.dtype)
    return out.transpose(0, 2, 1, 3)


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


def rotate(
    x: Float[Array, "b n h d"], positions: Int[Array, "b n"], base: float
) -> Float[Array, "b n h d"]:
    """Rotary position embedding (Su et al. 2021), halves layout as in Llama.

    Feature i of the first half is turned with feature i of the second half by the angle
    position * base^(-2 i / d).
    """
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None].astype(jnp.float32) * frequency[None, None]
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)
