"""Every figure of an evaluation under one flat name each, and what plots need."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rm_jax.evals import (
    accuracy,
    best_of_n,
    bias,
    calibration,
    labels,
    steps,
    uncertainty,
)
from rm_jax.evals.intervals import Sample, intervals
from rm_jax.evals.table import (
    Pairs,
    ScoreTable,
    gold_pairs,
    pairs,
    present,
    take,
    untied,
)


class Histogram(NamedTuple):
    """Counts of values between consecutive edges; the last bin has both its edges."""

    counts: Int[np.ndarray, "b"]
    edges: Float[np.ndarray, "b+1"]


def evaluate(
    table: ScoreTable, *, seed: int, temperature: float = 1.0
) -> dict[str, float]:
    """The figures of one data set; each example counts once, times its weight.

    Always there: n_examples, n_prompts, n_pairs (ordered by label), n_ties (labelled
    ties), length_matched_n; nll, brier, ece, mce (of σ(Δ / temperature), ties and soft
    labels included), temperature (fitted here), nll_at_temperature; score_mean,
    score_std. With label-ordered pairs: accuracy, tie_rate (of scores), margin_mean,
    margin_std, length_baseline, length_matched_accuracy, shorter_chosen_accuracy,
    longer_chosen_accuracy, length_balanced_accuracy (mean of the two). With K > 2:
    best_of_k, kendall_tau, n_best_of_k, n_kendall_tau. With gold utility:
    gold_accuracy, n_gold_pairs, score_length_corr_given_gold, those of
    `labels.against_gold` and `best_of_n.curve`. With levels of strength: those of
    `labels.by_strength`. Where they vary:
    score_length_corr (within examples), score_length_corr_across. With members or a
    covariance: those of `uncertainty.figures`. With labelled steps of a model that
    scores them: step_accuracy, first_error_accuracy, step_auroc, step_right_share,
    n_steps (rm_jax/evals/steps.py); where no pair is labelled they are there without
    all that is of pairs.

    accuracy, gold_accuracy, length_matched_accuracy, best_of_k, kendall_tau, nll,
    brier, step_accuracy and first_error_accuracy also have _low and _high: 95 %, by
    resampling prompts. A figure that is not defined on this table (no such pairs, a
    single prompt, no variance) is absent; no value is NaN.

    Args:
      table: scores and labels.
      seed: of the bootstrap.
      temperature: T of the model under evaluation, nats of score a nat of log-odds.

    Raises:
      ValueError: no labelled pair or step; or see `check`.
    """
    found = pairs(table)
    if not is_labelled(table):
        raise ValueError(
            f"none of the {len(table.ids)} examples has two ranked responses, a soft "
            "label or a labelled step that the model scores: nothing to evaluate "
            "against"
        )
    samples = _samples(table, found, temperature)
    out = _counts(table, found, samples)
    if table.steps is not None:
        samples |= steps.samples(table.steps, table.weight, table.prompts)
        out |= steps.figures(table.steps, table.weight)
    for name, (low, high) in intervals(samples, seed).items():
        out[name] = samples[name].mean()
        out[f"{name}_low"], out[f"{name}_high"] = low, high
    if len(found.delta):
        out |= _calibration(found, temperature) | _length(table, found)
        out |= labels.by_strength(table, found) | labels.against_gold(table, found)
        out |= best_of_n.curve(table) | uncertainty.figures(table, temperature)
    out |= _moments(table, found)
    return {name: float(v) for name, v in out.items() if not np.isnan(v)}


def is_labelled(table: ScoreTable) -> bool:
    """Whether there is a labelled pair, or a labelled step that has a score.

    Raises:
      ValueError: see `check`.
    """
    of_steps = table.steps
    known = of_steps is not None and steps.figures(of_steps, table.weight)["n_steps"]
    return bool(known or len(pairs(table).delta))


def by_source(table: ScoreTable, **how: Any) -> dict[str, dict[str, float]]:
    """`evaluate` of each source of a mixture that has a label; {} without a mixture.

    Args:
      table: scores and labels.
      how: of `evaluate`.
    """
    names = [str(name) for name in np.unique(table.source) if name]
    rows = {name: take(table, table.source == name) for name in names}
    usable = [n for n in names if rows[n].weight.any() and is_labelled(rows[n])]
    return {name: evaluate(rows[name], **how) for name in usable}


def histograms(table: ScoreTable, bins: int = 50) -> dict[str, Histogram]:
    """Histograms of the margins (better minus worse by label) and of all scores.

    Raises:
      ValueError: see `check`.
    """
    margins = untied(pairs(table)).delta
    scores = table.scores[present(table)].astype(np.float64)
    return {
        "margin": Histogram(*np.histogram(margins, bins)),
        "score": Histogram(*np.histogram(scores, bins)),
    }


def _samples(table: ScoreTable, found: Pairs, temperature: float) -> dict[str, Sample]:
    return {
        "accuracy": accuracy.accuracy(found),
        "gold_accuracy": accuracy.accuracy(gold_pairs(table)),
        "length_matched_accuracy": accuracy.length_matched(found),
        "best_of_k": accuracy.best_of_k(table),
        "kendall_tau": accuracy.kendall_tau(table),
        "nll": calibration.nll(found, temperature),
        "brier": calibration.brier(found, temperature),
    }


def _counts(
    table: ScoreTable, found: Pairs, samples: dict[str, Sample]
) -> dict[str, int]:
    n = {name: len(sample.values) for name, sample in samples.items()}
    out = {
        "n_examples": len(np.unique(found.example)),
        "n_prompts": len(np.unique(found.prompts)),
        "n_pairs": n["accuracy"],
        "n_ties": int(found.tie.sum()),
        "length_matched_n": n["length_matched_accuracy"],
    }
    if (present(table).sum(1) > 2).any():
        out |= {f"n_{name}": n[name] for name in ("best_of_k", "kendall_tau")}
    if np.isfinite(table.gold).any():
        out["n_gold_pairs"] = n["gold_accuracy"]
    return out


def _calibration(found: Pairs, temperature: float) -> dict[str, float]:
    bins = calibration.reliability(found, temperature)
    fitted = calibration.fit_temperature(found)
    return {
        "ece": calibration.ece(bins),
        "mce": calibration.mce(bins),
        "temperature": fitted,
        "nll_at_temperature": calibration.nll(found, fitted).mean(),
    }


def _length(table: ScoreTable, found: Pairs) -> dict[str, float]:
    shorter = accuracy.shorter_chosen(found).mean()
    longer = accuracy.longer_chosen(found).mean()
    corr = bias.length_correlation(table)
    return {
        "length_baseline": accuracy.length_baseline(found),
        "shorter_chosen_accuracy": shorter,
        "longer_chosen_accuracy": longer,
        "length_balanced_accuracy": (shorter + longer) / 2,
        "score_length_corr": corr["within"],
        "score_length_corr_across": corr["across"],
        "score_length_corr_given_gold": corr["within_given_gold"],
    }


def _moments(table: ScoreTable, found: Pairs) -> dict[str, float]:
    kept = untied(found)
    here = present(table)
    weight = np.broadcast_to(table.weight[:, None], here.shape)[here]
    out = {"tie_rate": accuracy.tie_rate(found).mean()}
    values = {
        "margin": (kept.delta, kept.weight),
        "score": (table.scores[here], weight),
    }
    for name, (x, w) in values.items():
        x = x.astype(np.float64)
        mean = np.average(x, weights=w) if len(x) else np.nan
        var = np.average((x - mean) ** 2, weights=w) if len(x) else np.nan
        out[f"{name}_mean"], out[f"{name}_std"] = mean, np.sqrt(var)
    return out
