"""What a head is: pure functions over a small tree of parameters."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float

from rm_jax.models.arch import ArchConfig

Outputs = dict[str, Array]


class Pooled(NamedTuple):
    """What a head sees of each slot.

    Attributes:
      response: the pooled vector of the response.
      prompt: the vector of the prompt's last token; None for heads that do not ask.
      lengths: tokens of the response.
    """

    response: Float[Array, "b s d"]
    prompt: Float[Array, "b s d"] | None
    lengths: Float[Array, "b s"]


class Responses(NamedTuple):
    """What `combine` sees of the responses of a chunk, beside the head's outputs.

    Attributes:
      present: whether the response exists.
      logp: log p of its tokens by the language model; None for heads that do not ask.
      reference_logp: that under a reference, of the data; NaN or None where not given.
    """

    present: Bool[Array, "e k"]
    logp: Float[Array, "e k"] | None
    reference_logp: Float[Array, "e k"] | None


class Head(NamedTuple):
    """One kind of head.

    Attributes:
      init: (key, arch) -> parameters; None has none.
      apply: (parameters, Pooled, arch, key) -> {"scores": [b s], name: [b s ...]}; a
        key means training, None an evaluation.
      outputs: name -> (arch -> shape after [b s]) of what comes beside the scores.
      knobs: name -> default, of `config.model.head`. A value has the type of the
        default. A fraction is from 0 to below 1 if the default is; any other one is
        above 0; `limits` has those that are not. Whole numbers are from 1.
      prompt: whether Pooled.prompt is read.
      of_attributes: whether it predicts the ratings of the data.
      steps: outputs that are one a step, [e k p]; with any, each step of a response is
        scored at its last token, and p is the slots of a row.
      combine: (outputs [e k ...], Responses, arch) -> outputs; for heads whose scores
        depend on the other responses of the example, on their steps or on log p.
      zero: whether it may start at 0; else it has a start of its own.
      one_each: knobs that are a number for all attributes or a mapping attribute ->
        number.
      limits: knob -> its least and its largest number.
      of_logp: whether Responses.logp is read: the model needs its head of tokens.
      intercept: whether the score has a free constant, of which no loss on pairs knows.
      rivals: whether a response is scored against others: alone it has no score.
    """

    init: Callable[[Array, ArchConfig], Any] | None
    apply: Callable[[Any, Pooled, ArchConfig, Array | None], Outputs]
    outputs: Mapping[str, Callable[[ArchConfig], tuple[int, ...]]] = {}
    knobs: Mapping[str, Any] = {}
    prompt: bool = False
    of_attributes: bool = False
    steps: tuple[str, ...] = ()
    combine: Callable[[Outputs, Responses, ArchConfig], Outputs] | None = None
    zero: bool = True
    one_each: tuple[str, ...] = ()
    limits: Mapping[str, tuple[float, float]] = {}
    of_logp: bool = False
    intercept: bool = False
    rivals: bool = False


def single(arch: ArchConfig) -> tuple[int, ...]:
    """Shape of an output that is one number a response."""
    return ()


def by_attribute(arch: ArchConfig) -> tuple[int, ...]:
    """Shape of an output that is one number an attribute."""
    return (len(arch.attributes),)
