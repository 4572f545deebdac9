"""Ties as an outcome of their own: Rao & Kupper 1967, Davidson 1970.

    rm-jax train --config configs/ties.py --workdir runs/ties

arg: SIZE-MODEL, SIZE of configs/llama.py, whose recipe it takes, MODEL rao_kupper (a
difference of less than a threshold is not noticed) or davidson (a tie has odds of its
own). Liu 2024 (2410.05328) for reward models. Full size on HelpSteer3, whose pairs may
be tied. From random parameters unless --config.model.init=RUN.
"""

from ml_collections import ConfigDict

from rm_jax.config import load

MODELS = {
    "rao_kupper": {"name": "rao_kupper", "threshold": 0.5},
    "davidson": {"name": "davidson", "ties": 0.5},
}


def get_config(arg: str = "tiny-rao_kupper") -> ConfigDict:
    """The config of SIZE-MODEL."""
    size, _, model = (arg or "tiny-rao_kupper").partition("-")
    if model not in MODELS:
        raise ValueError(f"ties:{arg}: want SIZE-MODEL of {list(MODELS)}")
    c = load(f"rm_jax:llama:{size}")
    c.name = f"ties-{size}-{model}"
    c.loss = ConfigDict(MODELS[model] | {"regularizers": {}})
    if size == "tiny":
        c.data.world.tie_threshold = 0.5  # about a sixth of the pairs
        return c
    c.loss.regularizers.center = ConfigDict({"weight": 0.01})
    c.data.train = "preset:helpsteer3"
    return c
