"""Product of experts (Shen 2023): what length explains is learnt beside, not by, r.

    rm-jax train --config configs/poe.py --workdir runs/poe

sigma(delta r + delta f(length)) in training, r alone after it; the paper's expert is a
small language model, this one sees nothing but the length. Formula and constants are
from memory. arg: a size of configs/llama.py, whose recipe it takes. From random
parameters unless --config.model.init=RUN.
"""

from ml_collections import ConfigDict

from rm_jax.config import load


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a size of configs/llama.py."""
    size = arg or "tiny"
    c = load(f"rm_jax:llama:{size}")
    c.name = f"poe-{size}"
    c.model.head.name = "length_expert"
    c.model.head.hidden = 16
    c.loss = ConfigDict({"name": "bt", "regularizers": {}})
    if size == "tiny":
        c.data.world.length_bias = 0.5  # what the expert is for
    return c
