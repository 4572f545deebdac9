"""General preference model (Zhang 2024, 2410.02197): preferences that may be cyclic.

    rm-jax train --config configs/pair.py --workdir runs/pair

Each response becomes a vector, and a pair of them a preference that changes its sign
with their order; the reward is the mean preference over the other responses. arg: a
size of configs/llama.py, whose recipe it takes: rate and batch of the paper are not
verified. From random parameters unless --config.model.init=RUN.
"""

from ml_collections import ConfigDict

from rm_jax.config import load


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a size of configs/llama.py."""
    size = arg or "tiny"
    c = load(f"rm_jax:llama:{size}")
    c.name = f"pair-{size}"
    c.model.head.name = "pair"
    c.model.head.planes = 3
    c.model.head.init = "normal"
    c.loss = ConfigDict({"name": "bt", "regularizers": {}})  # r_0 + r_1 is 0 anyhow
    if size == "tiny":
        c.contract.pooling = "mean"  # a product of two sums would grow with length^2
    return c
