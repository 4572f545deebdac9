"""Programs for what a single model doubts: features of its last layer, and dropout."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from rm_jax.sharding import BATCH, replicated
from rm_jax.types import Labels, PackedBatch


def make_features(
    apply_fn: Callable, mesh: Mesh, params_shardings: Any, last: Sequence[str]
) -> Callable:
    """Compiled (params, batch, labels) -> features [e k d], ∂ score / ∂ weights.

    For a score that is linear in the weights of its last layer these are what the layer
    is given: for the linear head the pooled vectors.

    Args:
      apply_fn: the model.
      mesh: the devices.
      params_shardings: of the parameters.
      last: path of the layer's weights [d] in params["head"].
    """

    def features(params, batch: PackedBatch, labels: Labels):
        def scores(weights):
            own = {**params, "head": replaced(params["head"], last, weights)}
            return apply_fn(own, batch, *labels.ranks.shape, None).scores

        # Forward: the trunk runs once, and d tangents pass the head alone.
        return jax.jacfwd(scores)(find(params["head"], last))

    whole, rows = replicated(mesh), NamedSharding(mesh, BATCH)
    return jax.jit(
        features, in_shardings=(params_shardings, rows, whole), out_shardings=whole
    )


def make_dropout_score(
    apply_fn: Callable, mesh: Mesh, params_shardings: Any, samples: int, seed: int
) -> Callable:
    """Compiled (params, batch, labels) -> scores [m e k] of m draws of dropout.

    Every response is dropped out for itself, one draw after the other in the memory of
    one. A head that adds the length while training is taken without it.

    Reference: Gal and Ghahramani 2016, "Dropout as a Bayesian approximation".
    """

    def score(params, batch: PackedBatch, labels: Labels):
        # Another key a chunk, the same one for the same chunk.
        key = jax.random.fold_in(jax.random.key(seed), jnp.max(labels.ids))

        def one(key):
            keys = tuple(jax.random.split(key))  # of the trunk and of the head
            shape, reference = labels.ranks.shape, labels.reference_logp
            out = apply_fn(params, batch, *shape, keys, reference)
            return out.aux.get("quality", out.scores)

        return jax.lax.map(one, jax.random.split(key, samples))

    whole, rows = replicated(mesh), NamedSharding(mesh, BATCH)
    return jax.jit(
        score, in_shardings=(params_shardings, rows, whole), out_shardings=whole
    )


def find(tree: Any, path: Sequence[str]) -> Any:
    """The leaf at a path."""
    for key in path:
        tree = tree[key]
    return tree


def replaced(tree: Any, path: Sequence[str], leaf: Any) -> Any:
    """The tree with another leaf at a path."""
    if not path:
        return leaf
    return {**tree, path[0]: replaced(tree[path[0]], path[1:], leaf)}
