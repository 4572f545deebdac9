"""What a surface feature is worth to a reward model, beside what it was made worth.

Counterfactual pairs from the synthetic world: two responses to one prompt that differ
in one attribute only. The world knows what that attribute is worth to a fair and to its
biased annotator; the model's score difference is put beside both.
"""

import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from rm_jax.data import cache
from rm_jax.data.contract import Encoder
from rm_jax.data.world import make_world
from rm_jax.evals.bias import probe_effects

KINDS = ("length", "sycophancy")


def world_probes(
    world: Mapping[str, Any],
    encoder: Encoder,
    score: Callable[[cache.TokenSet], Float[np.ndarray, "n 2"]],
    n: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """kind -> `bias.probe_effects` of n probes, in nats.

    Args:
      world: knobs of the world that the model was trained in.
      encoder: of the model's contract.
      score: a token set -> scores of response 0 (with the attribute) and 1 (without).
      n: probes of each kind.
      seed: of the bootstrap.
    """
    made = make_world(world)
    out = {}
    for kind in KINDS:
        probes = made.probes(n, kind)
        with tempfile.TemporaryDirectory() as folder:
            records = [probe.record for probe in probes]
            where = pathlib.Path(folder) / "probes"
            data = cache.build(records, encoder, where, {}, {})
            scores = np.asarray(score(data), np.float64)
        out[kind] = probe_effects(
            scores[:, 0] - scores[:, 1],
            np.array([probe.gold for probe in probes]),
            np.array([probe.annotator for probe in probes]),
            np.arange(n),
            seed,
        )
    return out
