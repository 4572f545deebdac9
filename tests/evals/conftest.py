"""A builder of small score tables; what is not given is unknown."""

import numpy as np
import pytest

from rm_jax.evals.table import ScoreTable


@pytest.fixture(scope="session")
def make_table():
    def make(scores, ranks, lengths=None, **columns) -> ScoreTable:
        scores, ranks = np.asarray(scores, float), np.asarray(ranks)
        e = len(scores)
        if lengths is None:
            lengths = np.where(np.isnan(scores), 0, 10)
        columns = {
            "ids": np.array([f"row{i}" for i in range(e)]),
            "weight": np.ones(e),
            "soft": np.full(e, np.nan),
            "strength": np.full(e, np.nan),
            "prompts": np.arange(e, dtype=np.int64),
            "source": np.full(e, ""),
            "gold": np.full(scores.shape, np.nan),
            **{name: np.asarray(value) for name, value in columns.items()},
        }
        return ScoreTable(
            scores=scores, ranks=ranks, lengths=np.asarray(lengths), **columns
        )

    return make


@pytest.fixture(scope="session")
def random_table(make_table):
    """Examples of 1 to k responses with ties, soft labels and shared prompts."""

    def make(seed: int, e: int = 60, k: int = 5) -> ScoreTable:
        rng = np.random.default_rng(seed)
        counts = rng.integers(1, k + 1, e)
        counts[:2] = 2, k
        there = np.arange(k) < counts[:, None]
        # Dyadic scores: differences and shifts of them are exact.
        scores = np.where(there, rng.integers(-40, 40, (e, k)) / 8, np.nan)
        ranks = np.where(there, rng.integers(-1, 4, (e, k)), -1)
        ranks[0, :2] = 0, 1
        soft = np.where((counts == 2) & (rng.random(e) < 0.5), rng.random(e), np.nan)
        return make_table(
            scores,
            ranks,
            np.where(there, rng.integers(1, 30, (e, k)), 0),
            soft=soft,
            weight=rng.integers(1, 4, e) / 2,
            prompts=rng.integers(0, e // 2, e),
            gold=np.where(there, rng.normal(size=(e, k)), np.nan),
        )

    return make
