import numpy as np
import pytest

from rm_jax.evals.reducers import REDUCERS, known, parse, reduce

NAN = np.nan
# Three members' scores of two responses.
MEMBERS = np.array([[0.0, 2.0], [3.0, 2.0], [6.0, 5.0]])


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("mean", [3.0, 3.0]),
        ("median", [3.0, 2.0]),
        ("min", [0.0, 2.0]),
        # variances 6 and 2, ddof 0
        ("mean_minus_var", [0.0, 2.0]),
        ("mean_minus_var:2", [-9.0, -1.0]),
        ("mean_minus_std", [3 - 6**0.5, 3 - 2**0.5]),
        ("mean_minus_std:0", [3.0, 3.0]),
        ("quantile", [1.5, 2.0]),
        ("quantile:1", [6.0, 5.0]),
    ],
)
def test_by_hand(text, want):
    np.testing.assert_allclose(reduce(text, MEMBERS), want, rtol=1e-15)


def test_quantiles_are_min_and_median():
    draws = np.random.default_rng(0).normal(size=(7, 5, 3))
    np.testing.assert_array_equal(reduce("quantile:0", draws), reduce("min", draws))
    np.testing.assert_allclose(reduce("quantile:0.5", draws), reduce("median", draws))


@pytest.mark.parametrize("name", REDUCERS)
def test_one_member_is_itself(name):
    one = np.array([[0.1, 1e4, NAN]], np.float32)
    got = reduce(name, one)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, one[0])


@pytest.mark.parametrize("name", REDUCERS)
def test_shift_scale_order_and_bounds(name):
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(5, 40)) * 100
    got = reduce(name, draws)
    np.testing.assert_allclose(reduce(name, draws + 7), got + 7, rtol=1e-9)
    np.testing.assert_allclose(reduce(name, draws[::-1]), got, rtol=1e-12)
    if name != "mean_minus_var":  # a variance scales by the square
        np.testing.assert_allclose(reduce(name, draws * 3), got * 3, rtol=1e-9)
    same = np.broadcast_to(draws[0], draws.shape)
    np.testing.assert_allclose(reduce(name, same), draws[0], rtol=1e-12)
    assert (got <= draws.max(0)).all()


@pytest.mark.parametrize("name", REDUCERS)
def test_only_the_mean_ignores_each_members_level(name):
    """Two responses a prompt; every member adds a constant of its own to both."""
    rng = np.random.default_rng(2)
    pairs, level = rng.normal(size=(6, 20, 2)), 5 * rng.normal(size=(6, 20, 1))
    margin = lambda x: np.diff(reduce(name, x))
    moved = np.abs(margin(pairs + level) - margin(pairs)).max() > 1e-6
    assert moved == REDUCERS[name].needs_centred


@pytest.mark.parametrize("name", REDUCERS)
def test_a_missing_response_stays_missing(name):
    got = reduce(name, np.array([[1.0, NAN], [2.0, NAN]], np.float32))
    assert np.isfinite(got[0]) and np.isnan(got[1])
    broken = reduce(name, np.array([[1.0], [NAN], [2.0]]))
    assert np.isnan(broken[0])  # one member's NaN does not vanish


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("mode", "known: .*mean_minus_var:0.5.*quantile:0.25"),
        ("", "known: .*'min'"),
        ("min:2", "min has no knob"),
        ("quantile:1.5", "q = '1.5': want a number, 0 to 1, e.g. quantile:0.25"),
        ("mean_minus_var:-1", "λ = '-1': want a number, 0 or more"),
        ("mean_minus_std:inf", "k = 'inf'"),
        ("mean_minus_std:nan", "k = 'nan'"),
        ("mean_minus_std:", "k = ''"),
        ("quantile:low", "q = 'low'"),
    ],
)
def test_unknown_and_out_of_range_are_refused(text, why):
    with pytest.raises(ValueError, match=why):
        parse(text)


def test_texts_are_read_back():
    for text in known():
        assert str(parse(text)) == text
    with pytest.raises(ValueError, match="no members"):
        reduce("mean", np.zeros((0, 2)))
