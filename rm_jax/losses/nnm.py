"""Members that differ: the nuclear norm of their adapters (Zhai 2023, 2401.00243)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rm_jax.losses.regularize import Regularizer, WeightKnobs

SMALL = 1e-6  # singular values below this share of the norm have no gradient


def lora_nnm(params: Any, hparams: WeightKnobs) -> Float[Array, ""]:
    """-mean over adapted matrices of |A|_* / |A|_F: to minimise makes members differ.

    A [m r, n] are the A matrices (transposed) of all members of one layer, one above
    the other; |A|_* is the sum of its singular values, |A|_F the root of the sum of
    their squares. The ratio is between 1 and sqrt(m r), which orthogonal rows of one
    length reach. (Zhai prints an objective to maximise, +lambda times this ratio, with
    Bradley-Terry on the ensemble's mean reward; here each member has a loss of its own,
    as with every ensemble, and this term alone ties them.)

    Args:
      params: of all members; leaves `lora/a` are [m n r], [m g n r] in stacks.
      hparams: the weight is lambda; the source names no value for every model.

    Raises:
      ValueError: the model has no adapters.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    found = [x for path, x in leaves if _name(path).endswith("lora/a")]
    if not found:
        raise ValueError(
            "regularizer lora_nnm needs adapters: set config.model.lora.rank"
        )
    ratios = [_ratios(x if x.ndim == 4 else x[:, None]) for x in found]
    return -jnp.mean(jnp.concatenate(ratios))


def _ratios(a: Float[Array, "m g n r"]) -> Float[Array, "g"]:
    rows = jnp.transpose(a, (1, 0, 3, 2))  # [g m r n]
    rows = rows.reshape(a.shape[1], a.shape[0] * a.shape[3], a.shape[2])
    square = jnp.sum(rows**2, axis=(1, 2))
    norm = jnp.sqrt(jnp.where(square > 0, square, 1.0))  # of zeros the ratio is 0
    return jax.vmap(nuclear)(rows) / norm


@jax.custom_vjp
def nuclear(a: Float[Array, "p n"]) -> Float[Array, ""]:
    """Sum of singular values; its gradient U V' is that of those above SMALL.

    The derivative of an SVD divides by differences of singular values, which may be 0;
    that of their sum does not.
    """
    return jnp.sum(jnp.linalg.svd(a, compute_uv=False))


def _forward(a):
    u, s, v = jnp.linalg.svd(a, full_matrices=False)
    real = s > SMALL * jnp.max(s)
    return jnp.sum(s), jnp.einsum("pk,k,kn->pn", u, real.astype(a.dtype), v)


nuclear.defvjp(_forward, lambda slope, g: (g * slope,))


def _name(path: tuple) -> str:
    return "/".join(str(entry.key) for entry in path)


NNM = Regularizer(params=lora_nnm, across_members=True)
