"""The decoder: RMSNorm, rotary attention with grouped queries, gated MLP, residuals.

Whole repetitions of the layer pattern are stacked and scanned (one compiled body for
any depth); what is left over, and always the last layer, stands alone, because the last
layer needs its queries, output and MLP at the scored tokens only.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from rm_jax.models import attention
from rm_jax.models.arch import ArchConfig
from rm_jax.models.attention import Place, Turns
from rm_jax.models.lora import Linear
from rm_jax.types import PackedBatch


class Layout(NamedTuple):
    """What every layer needs to know of a batch besides its features."""

    place: Place
    first: Int[Array, "n"]  # attention.first_blocks
    turns: Turns


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale, in float32 (Zhang & Sennrich 2019)."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Normalises the last axis."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class Attention(nn.Module):
    """Queries of some tokens over the keys of all."""

    arch: ArchConfig
    window: int

    def setup(self):
        a = self.arch
        self.q = Linear(a.n_heads * a.head_dim, a)
        self.k = Linear(a.n_kv_heads * a.head_dim, a)
        self.v = Linear(a.n_kv_heads * a.head_dim, a)
        self.o = Linear(a.d_model, a, scale=1 / (2 * a.n_layers))

    def __call__(
        self,
        x: Float[Array, "b t d"],
        layout: Layout,
        slots: Int[Array, "b s"] | None,
        train: bool,
    ) -> Float[Array, "b n d"]:
        """Output at every token, or at `slots` only."""
        a = self.arch
        b, t, _ = x.shape
        place, at, asked, asking = layout.place, layout.place, layout.turns, x
        if slots is not None:
            at, asking = place.take(slots), take(x, slots)
            asked = Turns(*(take(angle, slots) for angle in asked))
        heads = (-1, a.head_dim)
        q = self.q(asking, train).reshape(b, asking.shape[1], *heads)
        k = self.k(x, train).reshape(b, t, *heads)
        v = self.v(x, train).reshape(b, t, *heads)
        q = attention.rotate(q, asked)
        k = attention.rotate(k, layout.turns)
        causal = a.attention == "causal"
        whole = t % a.attention_block == 0 and t > a.attention_block
        if causal and slots is None and whole:
            y = attention.blocked(
                q, k, v, place, layout.first, self.window, a.attention_block
            )
        else:
            mask = attention.tree_mask(at, place, self.window, causal)
            y = attention.attend(q, k, v, mask)
        return self.o(y.reshape(b, asking.shape[1], -1), train)


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)) (SwiGLU, Shazeer 2020)."""

    arch: ArchConfig

    def setup(self):
        a = self.arch
        self.gate, self.up = Linear(a.d_ff, a), Linear(a.d_ff, a)
        self.down = Linear(a.d_model, a, scale=1 / (2 * a.n_layers))

    def __call__(self, x: Float[Array, "b n d"], train: bool) -> Float[Array, "b n d"]:
        """Token-wise."""
        return self.down(nn.silu(self.gate(x, train)) * self.up(x, train), train)


class Block(nn.Module):
    """Pre-norm residual block."""

    arch: ArchConfig
    window: int

    def setup(self):
        a = self.arch
        self.norm1, self.norm2 = RMSNorm(a.norm_eps), RMSNorm(a.norm_eps)
        self.attn, self.mlp = Attention(a, self.window), MLP(a)
        self.drop = nn.Dropout(a.dropout)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        layout: Layout,
        slots: Int[Array, "b s"] | None,
        train: bool,
    ) -> Float[Array, "b n d"]:
        """The block's output at every token, or at `slots` only."""
        y = self.attn(self.norm1(x), layout, slots, train)
        x = x if slots is None else take(x, slots)
        x = x + self.drop(y, deterministic=not train)
        return x + self.drop(self.mlp(self.norm2(x), train), deterministic=not train)


def take(x: Float[Array, "b t d"], slots: Int[Array, "b s"]) -> Float[Array, "b s d"]:
    """Rows of x at the scored tokens."""
    return jnp.take_along_axis(x, slots[..., None], axis=1)


class Trunk(nn.Module):
    """Tokens to normalised hidden states; a model is a subclass with a head.

    Parameters: embed/embedding, stack_J (layers J, J + P, J + 2P, ... of a pattern of
    P, stacked on a leading axis), layer_I (the others), final_norm.
    """

    arch: ArchConfig

    def hidden(
        self, batch: PackedBatch, at_slots: bool, train: bool
    ) -> Float[Array, "b n d"]:
        """Hidden states after the final norm, at every token or at the slots only."""
        a = self.arch
        embed = nn.Embed(
            a.vocab_size,
            a.d_model,
            dtype=a.dtype,
            param_dtype=jnp.float32,
            embedding_init=nn.initializers.normal(a.d_model**-0.5),
            name="embed",
        )
        x = embed(batch.tokens)
        index = jnp.broadcast_to(
            jnp.arange(batch.tokens.shape[1])[None], batch.tokens.shape
        )
        place = Place(index, batch.positions, batch.segments, batch.branches)
        layout = Layout(
            place,
            attention.first_blocks(place, a.attention_block),
            attention.turns(batch.positions, a.head_dim, a.rope_base),
        )
        x = self._stacked(x, layout, train)
        for layer in range(a.groups * a.pattern, a.n_layers):
            slots = batch.slots if at_slots and layer == a.n_layers - 1 else None
            x = self._alone(layer, x, layout, slots, train)
        return RMSNorm(a.norm_eps, name="final_norm")(x)

    def _call(self, block: Block, train: bool):
        """block(params, key, ...) as a plain function, rematerialised on request."""

        def call(params, key, x, layout, slots):
            rngs = {"dropout": key} if train and self.arch.drops else None
            return block.apply({"params": params}, x, layout, slots, train, rngs=rngs)

        return jax.checkpoint(call) if self.arch.remat == "layer" else call

    def _key(self, train: bool):
        if train and self.arch.drops:
            return self.make_rng("dropout")
        return jax.random.key(0)

    def _init(self, block: Block, x, layout, copies: int | None):
        def init(key):
            return block.init(key, x, layout, None, False)["params"]

        if copies is None:
            return init
        return lambda key: jax.vmap(init)(jax.random.split(key, copies))

    def _stacked(self, x, layout, train):
        a = self.arch
        if not a.groups:
            return x
        blocks = [Block(a, a.window(j), parent=None) for j in range(a.pattern)]
        params = [
            self.param(f"stack_{j}", self._init(block, x, layout, a.groups))
            for j, block in enumerate(blocks)
        ]
        calls = [self._call(block, train) for block in blocks]
        keys = jax.random.split(self._key(train), (a.groups, a.pattern))

        def group(x, inputs):
            params, keys = inputs
            for j, call in enumerate(calls):
                x = call(params[j], keys[j], x, layout, None)
            return x, None

        return jax.lax.scan(group, x, (params, keys))[0]

    def _alone(self, layer, x, layout, slots, train):
        block = Block(self.arch, self.arch.window(layer), parent=None)
        params = self.param(f"layer_{layer}", self._init(block, x, layout, None))
        call = self._call(block, train)
        return call(params, self._key(train), x, layout, slots)
