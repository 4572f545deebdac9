"""Numeric knobs of a loss: declared as a NamedTuple, filled from the config.

The class is found from the annotation of the function's `hparams` parameter, so a
function of a user's own module has the same power as one of this package.

>>> from typing import Annotated
>>> class MarginKnobs(NamedTuple):
...     margin: Annotated[float, Range(0.0, math.inf)] = 0.0
>>> read_knobs(MarginKnobs, {"margin": 1}, "loss mine")
MarginKnobs(margin=array(1., dtype=float32))
"""

import difflib
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, get_type_hints

import numpy as np


class Range(NamedTuple):
    """The allowed values of a knob: finite, in [low, high); closed: [low, high]."""

    low: float
    high: float
    closed: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a number may be had."""
        below = value <= self.high if self.closed else value < self.high
        return bool(np.isfinite(value) and self.low <= value and below)

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}{']' if self.closed else ')'}"


class Allowed(NamedTuple):
    """The values of a label that a loss can use: in [low, high], `step` apart unless 0.

    A loss has `fn.allows = lambda hparams: {field of Labels: Allowed(...)}`.
    """

    low: float
    high: float
    step: float = 0.0

    def holds(self, values: np.ndarray) -> np.ndarray:
        """Whether each value may be had; one that is not given (NaN) may."""
        inside = (values >= self.low) & (values <= self.high)
        if self.step:
            at = (values - self.low) / self.step
            inside &= at == np.round(at)
        return inside | np.isnan(values)

    def __str__(self) -> str:
        steps = f", {self.step:g} apart" if self.step else ""
        end = ")" if np.isinf(self.high) else "]"
        return f"[{self.low:g}, {self.high:g}{end}{steps}"


class Needs(NamedTuple):
    """A field of the labels, or "token_logp", that a knob uses unless it is 0."""

    field: str


class NoKnobs(NamedTuple):
    """Of a function without knobs, or whose `hparams` parameter has no annotation."""


Positive = Annotated[float, Range(0.0, math.inf)]


def knob_class(fn: Callable[..., Any], where: str) -> type:
    """The NamedTuple class that annotates the `hparams` parameter of a function.

    Raises:
      ValueError: no such parameter, or its annotation is not a NamedTuple class.
    """
    try:
        parameters = inspect.signature(fn, eval_str=True).parameters
    except NameError as e:
        raise ValueError(
            f"{where}: an annotation of {fn} cannot be read at run time: {e}"
        ) from e
    if "hparams" not in parameters:
        raise ValueError(
            f"{where}: {fn} must have a parameter named 'hparams', has "
            f"{list(parameters)}"
        )
    found = parameters["hparams"].annotation
    if found is inspect.Parameter.empty:
        return NoKnobs
    if not (isinstance(found, type) and hasattr(found, "_field_defaults")):
        raise ValueError(
            f"{where}: hparams is annotated with {found!r}: want a typing.NamedTuple "
            "class, or no annotation where there are no knobs"
        )
    return found


def read_knobs(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """An instance of a knob class: float32 arrays, defaults where nothing is given.

    Args:
      cls: NamedTuple class, fields `Annotated[float, Range(...), Needs(...)]`; both
        annotations may be left out.
      values: name -> number.
      where: subject of the error messages.

    Raises:
      ValueError: unknown or missing knob, not a number, out of range.
    """
    hints = get_type_hints(cls, include_extras=True)
    for name in values:
        if name not in cls._fields:
            raise ValueError(
                f"{where}: no knob {name!r}{suggestion(name, cls._fields)}; "
                f"known: {_describe(cls, hints)}"
            )
    given = {**cls._field_defaults, **values}
    for name in cls._fields:
        if name not in given:
            raise ValueError(f"{where}: knob {name!r} has no default: set it")
    return cls(**{n: _number(given[n], hints[n], f"{where}: {n}") for n in cls._fields})


def needed(knobs: Any) -> dict[str, str]:
    """Field of the labels -> "knob = value", for every knob in use that needs one."""
    hints = get_type_hints(type(knobs), include_extras=True)
    return {
        note.field: f"{name} = {getattr(knobs, name):g}"
        for name in knobs._fields
        for note in _notes(hints[name], Needs)
        if getattr(knobs, name) != 0
    }


def suggestion(name: str, known: Any) -> str:
    """ "; did you mean 'x'?" for the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _number(value: Any, hint: Any, where: str) -> np.ndarray:
    if not isinstance(value, numbers.Real | np.ndarray) or isinstance(value, bool):
        raise ValueError(f"{where} = {value!r}: want a number")
    with np.errstate(over="ignore"):
        out = np.asarray(value, np.float32)
    limits = _notes(hint, Range) or [Range(-math.inf, math.inf)]
    for limit in limits:
        if out.shape or not limit.holds(out):
            raise ValueError(
                f"{where} = {value!r}: must be one finite float32 number in {limit}"
            )
    return out


def _notes(hint: Any, kind: type) -> list[Any]:
    return [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, kind)]


def _describe(cls: type, hints: Mapping[str, Any]) -> str:
    ranges = {n: _notes(hints[n], Range) for n in cls._fields}
    known = [f"{n} in {r[0]}" if r else n for n, r in ranges.items()]
    return ", ".join(known) or "none, it has no knobs"
