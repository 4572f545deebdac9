"""Names of metrics taken apart: set, source and figure."""

import pytest

from rm_jax.report import names

SOURCES = {"valid": ("web", "code"), "train": ("web",), "test": ()}


@pytest.mark.parametrize(
    ("name", "where", "source", "figure"),
    [
        ("train/loss", "train", "", "loss"),
        ("train/web/nll", "train", "web", "nll"),
        ("train/code/nll", "train", "", "code/nll"),
        ("eval/valid/nll", "eval/valid", "", "nll"),
        ("eval/valid/web/nll", "eval/valid", "web", "nll"),
        ("eval/valid/web/strength/1/n", "eval/valid", "web", "strength/1/n"),
        ("eval/valid/web", "eval/valid", "", "web"),
        ("eval/test/web/nll", "eval/test", "", "web/nll"),
        ("eval/test/reducer/min/nll", "eval/test", "", "reducer/min/nll"),
        ("eval/unknown/members/nll", "eval/unknown", "", "members/nll"),
        ("step", "", "", "step"),
        ("eval/odd", "", "", "eval/odd"),
    ],
)
def test_a_source_is_one_of_the_mixture(name, where, source, figure):
    assert names.parts(name, SOURCES) == (where, source, figure)


@pytest.mark.parametrize(
    ("figure", "kind", "rest"),
    [
        ("nll", "", "nll"),
        ("members/accuracy", "members", "accuracy"),
        ("members/best_of_16/gold", "members", "best_of_16/gold"),
        ("reducer/mean_minus_var/nll", "reducer/mean_minus_var", "nll"),
        ("strength/1.5/n_pairs", "strength/1.5", "n_pairs"),
        ("against_gold/rate", "against_gold", "rate"),
        ("best_of_4/gold", "", "best_of_4/gold"),
    ],
)
def test_a_figure_is_of_a_kind(figure, kind, rest):
    assert names.kind(figure) == (kind, rest)


def test_n_of_the_best_of_n():
    found = [names.best_of(f) for f in ("best_of_16/gold", "best_of_k", "nll")]
    assert found == [16, None, None]
