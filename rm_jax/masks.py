"""Masks over parameters: (regex, factor) lists on one name a layer.

A stack of scanned layers, "stack_J", has a leading axis over groups of P layers (P is
the length of the layer pattern): index g is layer g P + J. The names are those that
unrolled layers would have:

>>> parameter_names({"stack_1/q/kernel": (2, 4, 4)}, n_pattern=3)
{'stack_1/q/kernel': ('layers/1/q/kernel', 'layers/4/q/kernel')}

so `layers/[0-7]/` with factor 0 freezes the eight lowest layers.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Rules = Sequence[Sequence[Any]]  # of (regex, factor)


def parameter_names(
    shapes: Mapping[str, tuple[int, ...]], n_pattern: int
) -> dict[str, tuple[str, ...]]:
    """Path of each leaf -> its names with one name a layer: what the masks match.

    A leaf under "stack_J" has a name for each index of its leading axis, under
    "layers/(g n_pattern + J)"; one under "layer_I" has one, under "layers/I"; any other
    is named by its path.

    Args:
      shapes: path -> shape of each leaf.
      n_pattern: layers in a group of the scanned stacks.

    Raises:
      ValueError: two leaves get the same name, or a stack is beyond the pattern.
    """
    names = {p: _layer_names(p, shape, n_pattern) for p, shape in shapes.items()}
    owner: dict[str, str] = {}
    for path, own in names.items():
        for n in own:
            if owner.setdefault(n, path) != path:
                raise ValueError(
                    f"{owner[n]} and {path} are both {n}: is n_pattern = {n_pattern} "
                    "the model's?"
                )
    return names


def in_stack(path: str) -> re.Match | None:
    """The match of "stack_J/" in the path of a stacked leaf, J its group 1; or None."""
    return re.search(r"(?:^|(?<=/))stack_(\d+)/", path)


def factors(
    key: str,
    rules: Rules,
    names: Mapping[str, tuple[str, ...]],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """The factor of each leaf: [] where its layers agree, else [groups, 1, ...].

    Args:
      key: of config.optim, for errors.
      rules: the first pattern found anywhere in a name decides.
      names: of `parameter_names`.
      shapes: path -> shape of each leaf.

    Raises:
      ValueError: a rule that is no pair of a regex and a number from 0, or decides
        nothing; a name that none decides.
    """
    by_name = _match(f"optim.{key}", rules, [n for own in names.values() for n in own])
    out = {}
    for path, own in names.items():
        values = np.asarray([by_name[n] for n in own], np.float32)
        one_a_layer = values.reshape(-1, *(1,) * (len(shapes[path]) - 1))
        agree = (values == values[0]).all()
        out[path] = values[:1].reshape(()) if agree else one_a_layer
    return out


def _layer_names(path: str, shape: tuple[int, ...], n_pattern: int) -> tuple[str, ...]:
    found = in_stack(path)
    if not found:
        return (re.sub(r"(^|/)layer_(\d+)/", r"\1layers/\2/", path),)
    j = int(found[1])
    if j >= n_pattern or not shape:
        raise ValueError(
            f"{path} {shape}: want a leading axis over groups, and stack numbers below "
            f"n_pattern = {n_pattern}"
        )
    start, end = path[: found.start()], path[found.end() :]
    return tuple(f"{start}layers/{g * n_pattern + j}/{end}" for g in range(shape[0]))


def _match(key: str, rules: Rules, names: Sequence[str]) -> dict[str, float]:
    """The factor of the first pattern found in each name; each must decide one."""
    out: dict[str, float] = {}
    for pattern, factor in checked(key, rules):
        found = [n for n in names if re.search(pattern, n)]
        new = [n for n in found if n not in out]
        if not new:
            why = "comes after others that take" if found else "matches none of"
            raise ValueError(f"{key}: {pattern!r} {why} {(found or names)[:5]}")
        out |= dict.fromkeys(new, factor)
    left = [n for n in names if n not in out]
    if left:
        raise ValueError(
            f"{key} does not cover {left[:10]} ({len(left)} in all): end the list with "
            "('.*', 1.0)"
        )
    return out


def checked(key: str, rules: Rules) -> Rules:
    """The rules, each of them a regex and a number from 0.

    Raises:
      ValueError: naming the key and the first that is not.
    """
    for rule in rules:
        try:
            pattern, factor = rule
            re.compile(pattern)
            ok = math.isfinite(factor) and factor >= 0
        except (TypeError, ValueError, re.error):
            ok = False
        if not ok:
            raise ValueError(f"{key}: {rule!r} is not a pair of (regex, factor >= 0)")
    return rules
