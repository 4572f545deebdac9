"""What is chosen: a loss, its regularisers, their knobs, and what they need."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array

from rm_jax.losses.knobs import Allowed
from rm_jax.losses.regularize import Regularizer

TOKEN_LOGP = "token_logp"
PAIRS = "pairs"  # no field of Labels: two responses that are compared


class Objective(NamedTuple):
    """A chosen loss and its regularisers.

    Attributes:
      loss: (out, labels, hparams, key) -> [e].
      regularizers: name -> Regularizer.
      hparams: "loss" and each regulariser's name -> its knobs, float32 arrays. They go
        into the train state; the functions here take them from there.
      needs: field of Labels, "pairs" or "token_logp" -> who needs it.
      outputs: name in RewardOutput.aux -> who reads it.
      allows: (field of Labels, its values, who needs them so).
    """

    loss: Callable[..., Array]
    regularizers: dict[str, Regularizer]
    hparams: dict[str, Any]
    needs: dict[str, str]
    outputs: dict[str, str]
    allows: tuple[tuple[str, Allowed, str], ...] = ()

    def shared(self, others: "Sequence[Objective]") -> "Objective":
        """Of runs that differ in knobs: with all that any of them needs."""
        needs, outputs, allows = dict(self.needs), dict(self.outputs), self.allows
        for other in others:
            needs, outputs = other.needs | needs, other.outputs | outputs
            allows += tuple(one for one in other.allows if one not in allows)
        return self._replace(needs=needs, outputs=outputs, allows=allows)

    @property
    def needs_token_logp(self) -> bool:
        """Whether the model must return RewardOutput.token_logp."""
        return TOKEN_LOGP in self.needs
