"""A short fingerprint of an array's bits, whatever devices hold its pieces.

>>> import jax.numpy as jnp
>>> x = jnp.ones((3, 4))
>>> digests({"x": x}) == digests({"x": x.at[2, 3].set(1 + 2**-23)})
False
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

# 64-bit types become two 32-bit words.
_WORDS = {
    "int8": jnp.uint8,
    "uint8": jnp.uint8,
    "int16": jnp.uint16,
    "uint16": jnp.uint16,
    "float16": jnp.uint16,
    "bfloat16": jnp.uint16,
    "int32": jnp.uint32,
    "uint32": jnp.uint32,
    "float32": jnp.uint32,
    "int64": jnp.uint32,
    "uint64": jnp.uint32,
    "float64": jnp.uint32,
}


def digests(arrays: Mapping[str, Array]) -> dict[str, str]:
    """Digest of each named array as 16 hexadecimal digits; see `digest_fn`.

    Raises:
      TypeError: an array of a type that has no digest; the message lists those that do.
    """
    # All are dispatched before the first is fetched.
    lanes = {name: digest_fn(x) for name, x in arrays.items()}
    return {n: "".join(f"{v:08x}" for v in np.asarray(p)) for n, p in lanes.items()}


@jax.jit
def digest_fn(x: Array) -> UInt32[Array, "2"]:
    """Two sums over the words of an array, each word scrambled with its position.

    With w_i the bits of element i as an unsigned word, m a bijection of 32-bit words:

        t_i = m(w_i XOR m(i)),   digest = (sum_i t_i, sum_i m(t_i + c))   mod 2^32.

    For a fixed i both t_i and m(t_i + c) are bijections of w_i. If one word changes, in
    one bit or in many, exactly one term of each sum changes, by something that is not 0
    mod 2^32, so both sums change: every single flipped bit is seen, always. Changes of
    several words escape with a chance of about 2^-64. Sums mod 2^32 do not depend on
    order, so any sharding gives the same digest; and NaNs are only bits here.

    Positions are counted mod 2^32: two elements a multiple of 2^32 apart may trade
    places unseen. Shape and type are not in the digest; compare them first.

    Args:
      x: any shape; bool, integer, or float of 16 to 64 bits.

    Raises:
      TypeError: any other type.

    Reference: the multipliers of m are lowbias32, C. Wellons, "Prospecting for hash
    functions", 2018.
    """
    words = _words_fn(x)
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        step = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        index = index * jnp.uint32(size % 2**32) + step
    term = _mix_fn(words ^ _mix_fn(index))
    lanes = term, _mix_fn(term + jnp.uint32(0x9E3779B9))
    return jnp.stack([jnp.sum(lane, dtype=jnp.uint32) for lane in lanes])


def _words_fn(x: Array) -> UInt32[Array, "..."]:
    """The bits of each element as one 32-bit word, or two in a new last axis."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if str(x.dtype) not in _WORDS:
        raise TypeError(f"no digest for {x.dtype}; there is one for {sorted(_WORDS)}")
    return jax.lax.bitcast_convert_type(x, _WORDS[str(x.dtype)]).astype(jnp.uint32)


def _mix_fn(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    # xor with a shift of itself and multiplication by an odd number are bijections.
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
