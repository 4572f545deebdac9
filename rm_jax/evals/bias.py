"""What scores follow besides quality: length, an edited feature, the order given."""

import numpy as np
from jaxtyping import Bool, Float, Int

from rm_jax.evals.intervals import Sample, intervals
from rm_jax.evals.table import ScoreTable, check, present

# Of a constant less its mean only rounding is left: this share of it is no variance.
ROUNDING = 1e-12


ROUNDING = 1e-5  # relative; what float32 may differ by between two layouts


def length_correlation(table: ScoreTable) -> dict[str, float]:
    """Pearson correlation of score and length, weighted by example.

    Returns:
      within: of the values less their mean over the example's responses, which is what
        pairs see. across: of the values as they are, over all responses.
      within_given_gold: partial correlation within examples, gold utility held fixed,
        (r_sl - r_sg r_lg) / sqrt((1 - r_sg²)(1 - r_lg²)), over responses of known gold.
      NaN where a quantity does not vary.

    Raises:
      ValueError: see `check`.
    """
    check(table)
    here = present(table)
    known = here & np.isfinite(table.gold)
    s, l = _within(table.scores, here), _within(table.lengths, here)
    r = lambda a, b, mask: _pearson(a[mask], b[mask], _spread(table.weight, mask))
    s_known, l_known = _within(table.scores, known), _within(table.lengths, known)
    g = _within(table.gold, known)
    return {
        "within": r(s, l, here),
        "across": r(table.scores, table.lengths, here),
        "within_given_gold": _partial(
            r(s_known, l_known, known), r(s_known, g, known), r(l_known, g, known)
        ),
    }


def probe_effects(
    model_delta: Float[np.ndarray, "n"],
    gold_delta: Float[np.ndarray, "n"],
    annotator_delta: Float[np.ndarray, "n"],
    clusters: Int[np.ndarray, "n"],
    seed: int,
) -> dict[str, float]:
    """How much more one edit of a response is worth to the model than it truly is.

    effect = mean(u(edited) - u(original)) over counterfactual pairs that differ in one
    feature; bias = effect - gold effect, pair by pair. The injected bias is the
    annotator's, the measured one the model's. All in nats (log-odds of winning).

    Args:
      model_delta: score of the edited response minus score of the original.
      gold_delta: the same for the true utility.
      annotator_delta: the same for the utility that the labels were drawn from.
      clusters: prompt of each pair.
      seed: of the bootstrap.

    Returns:
      model_effect, gold_effect, annotator_effect, model_bias, annotator_bias, each with
      _low and _high (95 %), and n.

    Raises:
      ValueError: no pairs, arrays of different length, or values that are not finite.
    """
    deltas = {"model": model_delta, "gold": gold_delta, "annotator": annotator_delta}
    n = len(model_delta)
    for name, values in deltas.items():
        if values.shape != (n,) or clusters.shape != (n,) or n == 0:
            raise ValueError(f"{name} has shape {values.shape}, want ({n},) with n > 0")
        if not np.isfinite(values).all():
            at = int(np.argmin(np.isfinite(values)))
            raise ValueError(f"{name} delta of probe {at} is {values[at]}")
    values = {f"{name}_effect": v.astype(float) for name, v in deltas.items()}
    for name in ("model", "annotator"):
        values[f"{name}_bias"] = values[f"{name}_effect"] - values["gold_effect"]
    samples = {k: Sample(v, np.ones(n), clusters) for k, v in values.items()}
    out = {"n": float(n)}
    for name, (low, high) in intervals(samples, seed).items():
        out[name] = samples[name].mean()
        out[f"{name}_low"], out[f"{name}_high"] = low, high
    return out


def swap_check(
    scores: Float[np.ndarray, "e k"], swapped: Float[np.ndarray, "e k"]
) -> dict[str, float]:
    """Whether scores depend on the order in which responses are given.

    Args:
      scores: one a response; NaN where there is none.
      swapped: scores of the same responses, in the same columns, from a pass in which
        each example gave its responses in reverse order.

    Returns:
      max_difference: max |s - s'|. flipped_share: share of pairs of responses whose
      order differs (a tie that is no tie any more counts). NaN without pairs.

    Raises:
      ValueError: shapes differ, or a response has a score in one of them only.
    """
    if scores.shape != swapped.shape:
        raise ValueError(f"scores {scores.shape} and swapped {swapped.shape} differ")
    if (np.isnan(scores) != np.isnan(swapped)).any():
        row, column = np.argwhere(np.isnan(scores) != np.isnan(swapped))[0]
        raise ValueError(f"example {row}, response {column}: NaN in one pass only")
    left, right = np.triu_indices(scores.shape[1], 1)
    first = scores[:, left] - scores[:, right]
    second = swapped[:, left] - swapped[:, right]
    both = ~np.isnan(first)
    beyond = np.abs(first - second) > ROUNDING * np.maximum(1, np.abs(first))
    flipped = ((np.sign(first) != np.sign(second)) & beyond)[both]
    difference = np.abs(scores - swapped)[~np.isnan(scores)]
    return {
        "max_difference": float(difference.max()) if len(difference) else float("nan"),
        "flipped_share": float(flipped.mean()) if len(flipped) else float("nan"),
    }


def _within(
    values: np.ndarray, mask: Bool[np.ndarray, "e k"]
) -> Float[np.ndarray, "e k"]:
    values = np.where(mask, values, 0).astype(np.float64)
    mean = values.sum(1, keepdims=True) / np.maximum(mask.sum(1, keepdims=True), 1)
    rounding = ROUNDING * np.abs(values).max(1, keepdims=True)
    return np.where(mask & (np.abs(values - mean) > rounding), values - mean, 0)


def _spread(
    weight: Float[np.ndarray, "e"], mask: Bool[np.ndarray, "e k"]
) -> Float[np.ndarray, "n"]:
    return np.broadcast_to(weight[:, None], mask.shape)[mask].astype(np.float64)


def _pearson(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    if not w.sum() > 0:
        return float("nan")
    x, y = x.astype(np.float64), y.astype(np.float64)
    rounding = [ROUNDING * np.abs(v).max() for v in (x, y)]
    x, y = x - np.average(x, weights=w), y - np.average(y, weights=w)
    std = [np.sqrt(np.average(v * v, weights=w)) for v in (x, y)]
    if std[0] <= rounding[0] or std[1] <= rounding[1]:
        return float("nan")
    return float(np.average(x * y, weights=w) / (std[0] * std[1]))


def _partial(r_xy: float, r_xz: float, r_yz: float) -> float:
    left = (1 - r_xz**2) * (1 - r_yz**2)
    if not left > 1e-12:
        return float("nan")
    return float((r_xy - r_xz * r_yz) / np.sqrt(left))
