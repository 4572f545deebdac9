import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax.metrics import Mean, divide, mean_of, merge


def test_weighted_mean_by_hand():
    state = mean_of(np.array([1.0, 4.0]), np.array([3.0, 1.0]))
    assert state == Mean(7.0, 4.0)
    assert divide({"x": state}) == {"x": 1.75}


def test_merging_parts_is_the_mean_of_all_not_a_mean_of_means():
    values, weights = np.array([1.0, 1.0, 1.0, 5.0]), np.ones(4)
    parts = [{"x": mean_of(values[a:b], weights[a:b])} for a, b in ((0, 3), (3, 4))]
    assert divide(merge(parts)) == {"x": 2.0}


def test_names_missing_in_some_parts():
    total = merge([{"a": Mean(1.0, 1.0)}, {"b": Mean(2.0, 1.0)}, {"a": Mean(3.0, 1.0)}])
    assert divide(total) == {"a": 2.0, "b": 2.0}


def test_nan_under_weight_zero_does_not_count():
    state = mean_of(np.array([2.0, np.nan]), np.array([1.0, 0.0]))
    assert divide({"x": state}) == {"x": 2.0}
    assert math.isnan(divide({"x": mean_of(np.array([np.nan]), np.ones(1))})["x"])


def test_nothing_counted_is_nan():
    assert math.isnan(divide({"x": mean_of(np.ones(2), np.zeros(2))})["x"])
    assert merge([]) == {}


def test_same_under_jit_and_as_a_pytree():
    values, weights = jnp.array([1.0, jnp.nan, 4.0]), jnp.array([3.0, 0.0, 1.0])
    state = jax.jit(mean_of)(values, weights)
    assert isinstance(state, Mean)
    both = jax.tree.map(jnp.add, state, state)
    assert divide({"x": both}) == divide({"x": mean_of(values, weights)}) == {"x": 1.75}


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\) and weights \(2, 1\)"):
        mean_of(np.ones(2), np.ones((2, 1)))
