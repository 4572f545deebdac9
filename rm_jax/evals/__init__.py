"""Figures from a table of scores and labels. No model, no jax.

>>> import numpy as np
>>> nan = np.full(2, np.nan)
>>> table = ScoreTable(
...     ids=np.array(["a", "b"]), scores=np.array([[1.0, 0.0], [0.5, 2.0]]),
...     ranks=np.array([[0, 1], [0, 1]]), lengths=np.array([[7, 5], [4, 9]]),
...     weight=np.ones(2), soft=nan, strength=nan, prompts=np.array([1, 2]),
...     gold=np.full((2, 2), np.nan), source=np.array(["", ""]))
>>> evaluate(table, seed=0)["accuracy"]
0.5
"""

from rm_jax.evals.alarms import alarms
from rm_jax.evals.bias import length_correlation, probe_effects, swap_check
from rm_jax.evals.calibration import reliability
from rm_jax.evals.predictions import from_arrow, to_arrow
from rm_jax.evals.summary import by_source, evaluate, histograms
from rm_jax.evals.table import ScoreTable, concat, gold_pairs, pairs

__all__ = [
    "ScoreTable",
    "alarms",
    "by_source",
    "concat",
    "evaluate",
    "from_arrow",
    "gold_pairs",
    "histograms",
    "length_correlation",
    "pairs",
    "probe_effects",
    "reliability",
    "swap_check",
    "to_arrow",
]
