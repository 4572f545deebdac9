"""What the labels themselves tell: accuracy by their strength, labels against gold."""

import numpy as np

from rm_jax.evals.accuracy import accuracy
from rm_jax.evals.table import Pairs, ScoreTable, select, untied
from rm_jax.evals.uncertainty import auroc

LEVELS = 8  # strengths that are told apart; more are no levels


def by_strength(table: ScoreTable, found: Pairs) -> dict[str, float]:
    """strength/LEVEL/accuracy and n_pairs of each level of strength; {} without levels.

    Raters grade a preference in a few words ("significantly better"): a margin should
    help where it is strong (Llama 2, Touvron et al. 2023, table 28).

    Args:
      table: where the strengths are.
      found: its pairs by label.
    """
    kept = untied(found)
    strength = table.strength[kept.example]
    levels = np.unique(strength[np.isfinite(strength)])
    if not 1 < len(levels) <= LEVELS:
        return {}
    out = {}
    for level in levels:
        own = select(kept, strength == level)
        out[f"strength/{level:g}/accuracy"] = accuracy(own).mean()
        out[f"strength/{level:g}/n_pairs"] = len(own.delta)
    return out


def against_gold(table: ScoreTable, found: Pairs) -> dict[str, float]:
    """How well the scores find the labels that the gold utility contradicts.

    against_gold/rate: share of such labels. auroc: P(a label against gold has the lower
    margin than one that agrees), ties .5. lowest_fifth, highest_fifth: their share
    among the fifths of least and of largest margin. {} where no gold, or where labels
    and gold never disagree. On the training set this is how an ensemble finds wrong
    labels (Wang et al. 2024, Secrets of RLHF II, arXiv:2401.06080).

    Args:
      table: where gold is.
      found: its pairs by label.
    """
    kept = untied(found)
    e, gold = kept.example, table.gold
    ahead = gold[e, kept.better] - gold[e, kept.worse]
    known = select(kept, np.isfinite(ahead) & (ahead != 0))
    wrong = (ahead < 0)[np.isfinite(ahead) & (ahead != 0)]
    if not wrong.any() or wrong.all():
        return {}
    order = np.argsort(known.delta, kind="stable")
    fifth = max(1, round(len(order) / 5))
    share = lambda rows: float(np.average(wrong[rows], weights=known.weight[rows]))
    out = {
        "rate": share(order),
        "auroc": auroc(-known.delta, wrong, known.weight),
        "lowest_fifth": share(order[:fifth]),
        "highest_fifth": share(order[-fifth:]),
    }
    return {f"against_gold/{name}": value for name, value in out.items()}
