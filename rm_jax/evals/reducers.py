"""How the scores of m members become one: mean, or something that doubts them.

As text a reducer is its name, or its name and its knob: "min", "mean_minus_var:0.5".

>>> members = np.array([[1.0, 4.0], [3.0, 4.0]])
>>> reduce("mean_minus_std:1", members)
array([1., 4.])
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Reducer(NamedTuple):
    """One way to reduce members.

    Attributes:
      fn: (scores [m ...], knob) -> [...].
      says: the formula and where it comes from.
      needs_centred: whether it depends on the level of each member. A loss on pairs
        leaves that open: it fixes a reward up to a constant a prompt, another one for
        each member, and of all reducers only the mean does not see it.
      knob: name of its number; "" where there is none.
      default: of the knob.
      most: of the knob, which is 0 or more.
    """

    fn: Callable[[np.ndarray, float], np.ndarray]
    says: str
    needs_centred: bool = True
    knob: str = ""
    default: float = 0.0
    most: float = np.inf


class Choice(NamedTuple):
    """A reducer and the value of its knob."""

    name: str
    reducer: Reducer
    knob: float

    def __str__(self) -> str:
        return f"{self.name}:{self.knob:g}" if self.reducer.knob else self.name


# Variances have ddof 0: of these members, and 0 of one member.
REDUCERS = {
    "mean": Reducer(
        lambda x, _: x.mean(0), "mean over the members", needs_centred=False
    ),
    "median": Reducer(lambda x, _: np.median(x, 0), "median (Eisenstein 2023)"),
    "min": Reducer(lambda x, _: x.min(0), "least member: WCO (Coste 2023)"),
    "mean_minus_var": Reducer(
        lambda x, c: x.mean(0) - c * x.var(0),
        "mean - λ variance: UWO (Coste 2023)",
        knob="λ",
        default=0.5,
    ),
    "mean_minus_std": Reducer(
        lambda x, k: x.mean(0) - k * x.std(0),
        "mean - k std (Eisenstein 2023)",
        knob="k",
        default=1.0,
    ),
    "quantile": Reducer(
        lambda x, q: np.quantile(x, q, axis=0),
        "quantile q, linear between members; 0 is min, .5 the median",
        knob="q",
        default=0.25,
        most=1.0,
    ),
}


def parse(text: str) -> Choice:
    """The reducer that a text names, "NAME" or "NAME:KNOB".

    Raises:
      ValueError: an unknown name, with the known ones; a knob that the reducer lacks,
        that is no number or out of range.
    """
    name, colon, number = text.partition(":")
    if name not in REDUCERS:
        raise ValueError(f"reducer {text!r:.80}: known: {known()}")
    reducer = REDUCERS[name]
    if not colon:
        return Choice(name, reducer, reducer.default)
    if not reducer.knob:
        raise ValueError(f"reducer {text!r:.80}: {name} has no knob; known: {known()}")
    try:
        knob = float(number)
    except ValueError:
        knob = np.nan
    if not 0 <= knob <= reducer.most or np.isinf(knob):
        limit = "0 or more" if np.isinf(reducer.most) else f"0 to {reducer.most:g}"
        raise ValueError(
            f"reducer {text!r:.80}: {reducer.knob} = {number!r:.40}: want a number, "
            f"{limit}, e.g. {name}:{reducer.default:g}"
        )
    return Choice(name, reducer, knob)


def known() -> list[str]:
    """The reducers as they are written, with their default knobs."""
    return [str(Choice(n, r, r.default)) for n, r in REDUCERS.items()]


def reduce(text: str, scores: Float[np.ndarray, "m *rest"]) -> Float[np.ndarray, "..."]:
    """One score out of those of m members; NaN where any of them is NaN.

    Computed in float64, returned in the type of the scores. One member alone is
    returned as it is.

    Args:
      text: of `parse`.
      scores: the members come first.

    Raises:
      ValueError: see `parse`; or no member.
    """
    choice = parse(text)
    if not len(scores):
        raise ValueError("no members to reduce: the first axis has length 0")
    if len(scores) == 1:
        return scores[0].copy()
    wide = scores.astype(np.float64)
    return choice.reducer.fn(wide, choice.knob).astype(scores.dtype)
