"""Model FLOPs of a step by formula, and the peak of known devices: the two of MFU.

MFU = model FLOPs a second / peak FLOPs a second (Chowdhery et al. 2022, PaLM, appendix
B). Model FLOPs are those of the matrix products that the mathematics asks for, forward
once and backward twice; what is recomputed, padded or spent on norms is not counted.
"""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from rm_jax.data.loader import StepBatch
from rm_jax.models import ArchConfig
from rm_jax.models.lora import TARGETS
from rm_jax.types import FeatureBatch, PackedBatch

BACKWARD = 2  # a product's two gradients cost as much as it, each

# Pattern of jax's device_kind -> peak bfloat16 FLOP/s of one, dense. Sources: the
# pages "System architecture" of Cloud TPU ("peak compute per chip (bf16)"); NVIDIA's
# data sheets of A100, H100 and H200, halved where they count sparsity; for B200 that of
# the HGX board with 8.
PEAKS: tuple[tuple[str, float], ...] = (
    (r"TPU v4$", 275e12),
    (r"TPU v5 lite|TPU v5e", 197e12),
    (r"TPU v5p?$", 459e12),
    (r"TPU v6 lite|TPU v6e", 918e12),
    (r"A100", 312e12),
    (r"H100 PCIe", 756e12),
    (r"H100 NVL", 835e12),
    (r"H100", 989e12),
    (r"H200 NVL", 835e12),
    (r"H200", 989e12),
    (r"\bB200", 2250e12),
)


def peak_flops(device_kinds: Sequence[str]) -> float | None:
    """FLOP/s that devices could do together, bfloat16; None where one is not known."""
    each = [_peak(kind) for kind in device_kinds]
    return None if None in each else sum(each)


def _peak(kind: str) -> float | None:
    return next((peak for name, peak in PEAKS if re.search(name, kind)), None)


def step_flops(arch: ArchConfig, batch: StepBatch, token_logp: bool) -> float:
    """Model FLOPs of a training step: 3 x `forward_flops` of its chunks, of all hosts.

    With adapters the frozen weights have no gradient: those products count 2 x. Of
    features the head alone counts.

    Where each host holds some of the rows, theirs are taken to be like ours.

    Args:
      arch: the model.
      batch: of the loader.
      token_logp: whether the LM head is computed, too.
    """
    total = 0.0
    for (chunk, _), shape in zip(batch.chunks, batch.shapes, strict=True):
        if isinstance(chunk, FeatureBatch):
            scored = np.count_nonzero(chunk.slot_ids[..., 0] >= 0)
            total += (1 + BACKWARD) * 2.0 * int(scored) * arch.d_model
            continue
        hosts = shape.rows / len(chunk.tokens)
        flops = (1 + BACKWARD) * forward_flops(arch, chunk, token_logp)
        if arch.lora_rank:
            flops -= frozen_flops(arch, chunk, token_logp)
        total += hosts * flops
    return total


def frozen_flops(arch: ArchConfig, batch: PackedBatch, token_logp: bool) -> float:
    """FLOPs of one pass through the weights that adapters leave frozen."""
    tokens, last, scored = _tokens(arch, batch, token_logp)
    weights = _per_layer(arch, tokens, last, _kernels(arch))
    if token_logp:
        weights += (
            int(np.count_nonzero(batch.branches)) * arch.vocab_size * arch.d_model
        )
    return 2.0 * weights


def forward_flops(arch: ArchConfig, batch: PackedBatch, token_logp: bool) -> float:
    """FLOPs of the matrix products of one forward pass, 2 a multiplication.

    2 N a token, where N counts the weights of the products (Hoffmann et al. 2022,
    appendix F), plus 4 n_heads head_dim for each key that a token sees, in each layer.
    A prompt that responses share counts once, as it is computed once; of keys only
    those behind the mask count (PaLM counts all T of a sequence). With "last" pooling
    the last layer has queries, output and MLP at scored tokens only.

    Args:
      arch: the model.
      batch: one chunk, or this host's rows of it, as numpy arrays.
      token_logp: whether the LM head is computed at the responses' tokens.
    """
    a, d = arch, arch.d_model
    heads = a.n_heads * a.head_dim
    at_slots = a.pooling == "last" and not token_logp
    tokens, last, scored = _tokens(a, batch, token_logp)
    weights = _per_layer(a, tokens, last, _kernels(a))
    adapters = {
        name: a.lora_rank * sum(_shape(a, name))
        for name in _kernels(a)
        if name in a.lora_targets
    }
    weights += _per_layer(a, tokens, last, adapters)
    weights += scored * d  # the head
    if token_logp:
        weights += int(np.count_nonzero(batch.branches)) * a.vocab_size * d
    layers = range(a.n_layers)
    seen = {w: keys_seen(batch, w, a.attention == "causal") for w in set(a.windows)}
    pairs = [int(seen[a.window(layer)].sum()) for layer in layers]
    if at_slots:
        at = np.take_along_axis(seen[a.window(layers[-1])], batch.slots, axis=1)
        pairs[-1] = int(at[batch.slot_ids[..., 0] >= 0].sum())
    return 2.0 * weights + 4.0 * heads * sum(pairs)


def _tokens(
    arch: ArchConfig, batch: PackedBatch, token_logp: bool
) -> tuple[int, int, int]:
    """Tokens, those of them that the last layer answers for, and scored ones."""
    tokens = int(np.count_nonzero(batch.segments))
    scored = int(np.count_nonzero(batch.slot_ids[..., 0] >= 0))
    at_slots = arch.pooling == "last" and not token_logp
    return tokens, scored if at_slots else tokens, scored


def _shape(arch: ArchConfig, name: str) -> tuple[int, int]:
    """Inputs and outputs of a kernel of a layer."""
    a, d = arch, arch.d_model
    heads, kv = a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim
    return {
        "q": (d, heads), "k": (d, kv), "v": (d, kv), "o": (heads, d),
        "gate": (d, a.d_ff), "up": (d, a.d_ff), "down": (a.d_ff, d),
    }[name]  # fmt: skip


def _kernels(arch: ArchConfig) -> dict[str, int]:
    """Weights of each kernel of a layer."""
    names = [name for name in TARGETS if arch.gated or name != "gate"]
    return {name: math.prod(_shape(arch, name)) for name in names}


def _per_layer(
    arch: ArchConfig, tokens: int, last: int, weights: Mapping[str, int]
) -> int:
    """Products of weights over all layers; the last has keys and values of all."""
    of_all = sum(n for name, n in weights.items() if name in ("k", "v"))
    rest = sum(weights.values()) - of_all
    return (
        arch.n_layers * tokens * of_all + ((arch.n_layers - 1) * tokens + last) * rest
    )


def keys_seen(batch: PackedBatch, window: int, causal: bool) -> Int[np.ndarray, "b t"]:
    """How many keys each token attends to; 0 for padding.

    Causal: those of its prompt and its own response up to itself, position + 1, at most
    the window. Otherwise: its whole segment, on both sides of it up to the window.
    """
    real, at = np.asarray(batch.segments) > 0, np.asarray(batch.positions) + 1
    wide = window or at.shape[1]
    if causal:
        return np.where(real, np.minimum(at, wide), 0)
    seen = np.zeros(at.shape, np.int64)
    for b, s in np.argwhere(real & (at == 1)):  # where a segment begins
        own = batch.segments[b] == batch.segments[b, s]
        n, i = int(own.sum()), at[b, own]
        seen[b, own] = np.minimum(i, wide) + np.minimum(n - i, wide - 1)
    return seen
