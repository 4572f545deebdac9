"""The trunk: embeddings, attention and MLP with norms and residuals, a final norm.

One transformer for every family of backbones: what differs is in ArchConfig, and
without more it is a Llama (RMSNorm before, rotary attention with grouped queries, gated
MLP). Whole repetitions of the layer pattern are stacked and scanned (one compiled body
for any depth); what is left over, and always the last layer, stands alone, because the
last layer needs its queries, output and MLP at the scored tokens only.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from rm_jax.models import attention, rope
from rm_jax.models.arch import ArchConfig
from rm_jax.models.attention import Place
from rm_jax.models.lora import Linear
from rm_jax.models.rope import Turns
from rm_jax.types import PackedBatch

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}


class Layout(NamedTuple):
    """What every layer needs to know of a batch besides its features.

    Attributes:
      place: of every token.
      first: of attention.first_blocks.
      turns: rotary angles in layers without and with a window; () of other positions.
      distances: normalised table of relative distances, if there is one.
    """

    place: Place
    first: Int[Array, "n"]
    turns: tuple[Turns, ...]
    distances: Float[Array, "r d"] | None


class Norm(nn.Module):
    """RMSNorm (Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016), in float32.

    x / sqrt(mean(x^2) + eps) * scale, where LayerNorm subtracts the mean of x first and
    may add a bias; "rms_plus_one" multiplies with 1 + scale.
    """

    arch: ArchConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Normalises the last axis."""
        a, shape = self.arch, (x.shape[-1],)
        more = 1.0 if a.norm == "rms_plus_one" else 0.0
        init = nn.initializers.constant(1.0 - more)
        scale = self.param("scale", init, shape, jnp.float32) + more
        spread = lambda v: v.reshape((1,) * (x.ndim - 1) + (-1,))
        y = x.astype(jnp.float32)
        if a.norm == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + a.norm_eps)
        y = y * spread(scale)
        if "norm" in a.biases:
            zeros = nn.initializers.zeros
            y = y + spread(self.param("bias", zeros, shape, jnp.float32))
        return y.astype(x.dtype)


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
        self.q_norm, self.k_norm = Norm(a), Norm(a)

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
        place, at, asking = layout.place, layout.place, x
        if slots is not None:
            at, asking = place.take(slots), take(x, slots)
        n = asking.shape[1]
        q = self._heads(self.q(asking, train), self.q_norm)
        k = self._heads(self.k(x, train), self.k_norm)
        v = self.v(x, train).reshape(b, t, -1, a.head_dim)
        if layout.turns:
            turns = layout.turns[bool(self.window)]
            asked = turns
            if slots is not None:
                asked = Turns(*(take(angle, slots) for angle in turns))
            q, k = rope.rotate(q, asked), rope.rotate(k, turns)
        causal = a.attention == "causal"
        how = (a.query_scale or a.head_dim**-0.5, a.attention_cap)
        whole = t % a.attention_block == 0 and t > a.attention_block
        if layout.distances is not None:
            mask = attention.tree_mask(at, place, self.window, causal)
            heads = lambda y: y.reshape(-1, a.n_heads, a.head_dim)
            row = attention.distance_rows(
                at.position, place.position, a.position_rows, a.relative_distance
            )
            y = attention.attend_disentangled(
                q, k, v, mask, heads(self.k(layout.distances, train)),
                heads(self.q(layout.distances, train)), row, how[0],
            )  # fmt: skip
        elif causal and slots is None and whole:
            y = attention.blocked(
                q, k, v, place, layout.first, self.window, a.attention_block, *how
            )
        else:
            mask = attention.tree_mask(at, place, self.window, causal)
            y = attention.attend(q, k, v, mask, *how)
        return self.o(y.reshape(b, n, -1), train)

    def _heads(self, x: Float[Array, "b n m"], norm: Norm) -> Float[Array, "b n h d"]:
        if self.arch.qk_norm == "all":
            x = norm(x)
        x = x.reshape(*x.shape[:2], -1, self.arch.head_dim)
        return norm(x) if self.arch.qk_norm == "head" else x


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)) (GLU variants, Shazeer 2020), or down(act(up(x)))."""

    arch: ArchConfig

    def setup(self):
        a = self.arch
        self.gate, self.up = Linear(a.d_ff, a), Linear(a.d_ff, a)
        self.down = Linear(a.d_model, a, scale=1 / (2 * a.n_layers))

    def __call__(self, x: Float[Array, "b n d"], train: bool) -> Float[Array, "b n d"]:
        """Token-wise."""
        act = ACTIVATIONS[self.arch.activation]
        up = self.up(x, train)
        hidden = act(self.gate(x, train)) * up if self.arch.gated else act(up)
        return self.down(hidden, train)


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream."""

    arch: ArchConfig
    layer: int  # of the pattern, or of the trunk

    def setup(self):
        a = self.arch
        self.norm1, self.norm2 = Norm(a), Norm(a)
        self.norm1_out, self.norm2_out = Norm(a), Norm(a)
        self.attn, self.mlp = Attention(a, a.window(self.layer)), MLP(a)
        self.drop = nn.Dropout(a.dropout)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        layout: Layout,
        slots: Int[Array, "b s"] | None,
        train: bool,
    ) -> Float[Array, "b n d"]:
        """The block's output at every token, or at `slots` only."""
        at = self.arch.norm_at
        same = lambda y: y
        before = at in ("before", "both")
        out = at in ("outputs", "both")
        first = before and (self.arch.first_norm or self.layer > 0)
        norm1 = self.norm1 if first else same
        norm2 = self.norm2 if before else same
        norm1_out, norm2_out = (self.norm1_out, self.norm2_out) if out else (same, same)
        end1, end2 = (self.norm1, self.norm2) if at == "after_sum" else (same, same)
        drop = functools.partial(self.drop, deterministic=not train)

        y = drop(norm1_out(self.attn(norm1(x), layout, slots, train)))
        x = x if slots is None else take(x, slots)
        if self.arch.parallel:
            return x + y + drop(self.mlp(norm2(x), train))
        x = end1(x + y)
        return end2(x + drop(norm2_out(self.mlp(norm2(x), train))))


def take(x: Float[Array, "b t d"], slots: Int[Array, "b s"]) -> Float[Array, "b s d"]:
    """Rows of x at the scored tokens."""
    return jnp.take_along_axis(x, slots[..., None], axis=1)


class Trunk(nn.Module):
    """Tokens to normalised hidden states; a model is a subclass with a head.

    Parameters: embed/embedding, positions/embedding (learned) or distances/embedding
    (relative), embed_norm, stack_J (layers J, J + P, J + 2P, ... of a pattern of P,
    stacked on a leading axis), layer_I (the others), final_norm.
    """

    arch: ArchConfig

    def hidden(
        self, batch: PackedBatch, at_slots: bool, train: bool
    ) -> Float[Array, "b n d"]:
        """Hidden states after the final norm, at every token or at the slots only."""
        a = self.arch
        x, layout = self.embedded(batch)
        x, _ = self._stacked(x, layout, train, lambda x: None)
        for layer in range(a.groups * a.pattern, a.n_layers):
            slots = batch.slots if at_slots and layer == a.n_layers - 1 else None
            x = self._alone(layer, x, layout, slots, train)
        return Norm(a, name="final_norm")(x) if a.final_norm else x

    def embedded(self, batch: PackedBatch) -> tuple[Float[Array, "b t d"], Layout]:
        """What the first layer reads."""
        a = self.arch
        table = functools.partial(
            nn.Embed,
            features=a.d_model,
            dtype=a.dtype,
            param_dtype=jnp.float32,
            embedding_init=nn.initializers.normal(a.d_model**-0.5),
        )
        x = table(a.vocab_size, name="embed")(batch.tokens)
        if a.embed_scale != 1:
            x = x * jnp.asarray(a.embed_scale, a.dtype)
        if a.positions == "learned":
            x = x + table(a.position_rows, name="positions")(batch.positions)
        if a.embed_norm:
            x = Norm(a, name="embed_norm")(x)
        distances = None
        if a.positions == "relative":
            rows = jnp.arange(a.position_rows)
            distances = table(a.position_rows, name="distances")(rows)
            distances = Norm(a, name="distances_norm")(distances)
        angles = ()
        if a.positions == "rotary":
            dim = a.rotary_dim or a.head_dim
            angles = (
                rope.turns(batch.positions, dim, a.rope_base, dict(a.rope_scaling)),
            )
            local = angles[0]
            if a.rope_local_base:
                local = rope.turns(batch.positions, dim, a.rope_local_base)
            angles = (*angles, local)
        index = jnp.broadcast_to(
            jnp.arange(batch.tokens.shape[1])[None], batch.tokens.shape
        )
        place = Place(index, batch.positions, batch.segments, batch.branches)
        first = attention.first_blocks(place, a.attention_block)
        return x, Layout(place, first, angles, distances)

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

    def _stacked(self, x, layout, train, see):
        """The stacked layers' output, and see(x) after each of them."""
        a = self.arch
        if not a.groups:
            return x, None
        blocks = [Block(a, j, parent=None) for j in range(a.pattern)]
        params = [
            self.param(f"stack_{j}", self._init(block, x, layout, a.groups))
            for j, block in enumerate(blocks)
        ]
        calls = [self._call(block, train) for block in blocks]
        keys = jax.random.split(self._key(train), (a.groups, a.pattern))

        def group(x, inputs):
            params, keys = inputs
            seen = []
            for j, call in enumerate(calls):
                x = call(params[j], keys[j], x, layout, None)
                seen.append(see(x))
            return x, None if seen[0] is None else jnp.stack(seen)

        return jax.lax.scan(group, x, (params, keys))

    def _alone(self, layer, x, layout, slots, train):
        block = Block(self.arch, layer, parent=None)
        params = self.param(f"layer_{layer}", self._init(block, x, layout, None))
        call = self._call(block, train)
        return call(params, self._key(train), x, layout, slots)


class Layers(Trunk):
    """The hidden states of every layer, as the final norm would show them."""

    @nn.compact
    def __call__(
        self,
        batch: PackedBatch,
        read: Callable[[Float[Array, "b t d"]], Float[Array, "b n d"]],
    ) -> Float[Array, "l b n d"]:
        """read(final norm of h) after the embeddings (0) and each layer (1, 2, ...)."""
        a = self.arch
        x, layout = self.embedded(batch)
        own = {}
        if a.final_norm:
            Norm(a, name="final_norm")(x)  # makes the parameters
            own = {"params": self.variables["params"]["final_norm"]}
        norm = Norm(a, parent=None)
        seen = lambda x: read(norm.apply(own, x) if a.final_norm else x)
        out = [seen(x)[None]]
        x, stacked = self._stacked(x, layout, False, seen)
        if stacked is not None:
            out.append(stacked.reshape(-1, *stacked.shape[2:]))
        for layer in range(a.groups * a.pattern, a.n_layers):
            x = self._alone(layer, x, layout, None, False)
            out.append(seen(x)[None])
        return jnp.concatenate(out)
