import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rm_jax.digest import digest_fn, digests

TYPES = ["bool", "int8", "uint8", "int16", "float16", "bfloat16", "int32", "uint32"]


def mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
    x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def by_hand(words):
    terms = [mix(w ^ mix(i)) for i, w in enumerate(words)]
    second = [mix((t + 0x9E3779B9) % 2**32) for t in terms]
    return [sum(terms) % 2**32, sum(second) % 2**32]


def test_formula_in_plain_integers():
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    expected = by_hand([int(w) for w in x.view(np.uint32).ravel()])
    assert digest_fn(jnp.asarray(x)).tolist() == expected
    assert digest_fn(jnp.asarray([True, False])).tolist() == by_hand([1, 0])
    assert digest_fn(jnp.asarray(-1, jnp.int8)).tolist() == by_hand([255])
    assert digest_fn(jnp.zeros((0, 3))).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [*TYPES, "float32"])
def test_every_flipped_bit_changes_both_sums(dtype):
    x = np.asarray(jnp.asarray([[1, 0, 3], [0, 5, 7]]).astype(dtype))
    clean = np.asarray(digest_fn(jnp.asarray(x)))
    for i in range(x.size):
        for bit in range(1 if dtype == "bool" else 8 * x.itemsize):
            y = x.copy()
            y.reshape(-1).view(np.uint8)[i * x.itemsize + bit // 8] ^= 1 << bit % 8
            assert (np.asarray(digest_fn(jnp.asarray(y))) != clean).all()


def test_sees_order_zeros_and_nan_payloads():
    base = digest_fn(jnp.asarray([1.0, 2.0, 0.0]))
    assert (digest_fn(jnp.asarray([2.0, 1.0, 0.0])) != base).all()
    assert (digest_fn(jnp.asarray([1.0, 2.0, -0.0])) != base).all()
    words = np.asarray([0x7FC00000, 0x7FC00001, 0x7F800001, 0xFFC00000], np.uint32)
    nans = {n: jnp.asarray(words[n : n + 1].view(np.float32)) for n in range(4)}
    assert len(set(digests(nans).values())) == 4


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("a", "b"), P(None, "b"), P(("a", "b")), P()])
def test_any_sharding_gives_the_same_digest(kind, spec):
    x = jax.random.normal(jax.random.key(0), (16, 24))
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(kind, kind))
    sharded = jax.device_put(x, NamedSharding(mesh, spec))
    assert digests({"x": sharded}) == digests({"x": x})


def test_types_without_a_digest_are_named():
    with pytest.raises(TypeError, match="complex64.*float32"):
        digest_fn(jnp.zeros(2, jnp.complex64))
