"""Heads: from the pooled vector of a response to its score, and what losses ask beside.

A head is a dict entry of pure functions over its own parameters, a small tree. All of
it is float32 with the highest matmul precision. `scores` is the reward; losses and
regularisers name the other outputs that they read.

>>> sorted(HEADS["gaussian"].outputs)
['attributes', 'log_std']
"""

from rm_jax.models.heads.choice import HEADS, check, choose, find, shapes
from rm_jax.models.heads.head import Head, Outputs, Pooled, Responses

__all__ = [
    "HEADS",
    "Head",
    "Outputs",
    "Pooled",
    "Responses",
    "check",
    "choose",
    "find",
    "shapes",
]
