"""The program that scores a chunk with a model whose head scores steps."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from rm_jax.evals.score import Scored
from rm_jax.members import Members, axes, lift
from rm_jax.sharding import BATCH, replicated
from rm_jax.types import Labels, Rows


def make_step_scores(
    apply_fn: Callable,
    mesh: Mesh,
    params_shardings: Any,
    members: Members | None = None,
) -> Callable:
    """Compiled (params, batch, labels) -> Scored, the same on every device.

    With members every array has a leading axis of them.

    Args:
      apply_fn: (params, batch, examples, responses, key or None) -> RewardOutput with
        aux["steps"] and aux["scored"].
      mesh: the devices.
      params_shardings: of the parameters.
      members: of an ensemble.
    """
    owned = axes(params_shardings, members.share if members else "none")

    def score(params, batch: Rows, labels: Labels) -> Scored:
        def one(params):
            out = apply_fn(params, batch, *labels.ranks.shape, None)
            return Scored(out.scores, out.aux["steps"], out.aux["scored"])

        return lift(members, one, (owned,), turns=True)(params)

    whole, rows = replicated(mesh), NamedSharding(mesh, BATCH)
    return jax.jit(
        score, in_shardings=(params_shardings, rows, whole), out_shardings=whole
    )
