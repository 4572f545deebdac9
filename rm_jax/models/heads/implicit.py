"""The reward that a language model is by itself: how far it went from a reference."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from rm_jax.models.arch import ArchConfig
from rm_jax.models.heads.head import Head, Outputs, Pooled, Responses, single


def _nothing(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """It has no parameters: `_log_ratio` makes the scores."""
    return {"scores": jnp.zeros_like(x.lengths), "log_ratio": jnp.zeros_like(x.lengths)}


def _log_ratio(outputs: Outputs, of: Responses, arch: ArchConfig) -> Outputs:
    """r = β (log π(y | x) - log π_ref(y | x)), β in units of reward a nat.

    With `bt` this is DPO (Rafailov 2023, 2305.18290), with `implicit_prm_ce` Yuan 2024
    (2412.01981). The data have log π_ref, `reference_logp`, for whole responses: the
    ratios of their steps are not to be had.

    Raises:
      ValueError: what is scored comes without reference_logp.
    """
    if of.reference_logp is None:
        raise ValueError(
            "config.model.head.name = 'implicit' scores by reference_logp, and what is "
            "scored has none"
        )
    ratio = jnp.where(of.present, of.logp - of.reference_logp, 0.0)
    return {"scores": arch.knob("beta") * ratio, "log_ratio": ratio}


IMPLICIT = Head(
    None,
    _nothing,
    {"log_ratio": single},
    {"beta": 0.05},
    combine=_log_ratio,
    of_logp=True,
    limits={"beta": (1e-6, 1e6)},
)
