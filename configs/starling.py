"""Starling (Zhu 2023): the likelihood of a whole ranking of seven, Plackett-Luce.

    rm-jax train --config configs/starling.py --workdir runs/starling

arg: a size of configs/llama.py. Full size: Nectar, as the paper. Its rate and batch
could not be read: they are those of configs/instructgpt.py. From random parameters
unless --config.model.init=RUN.
"""

from ml_collections import ConfigDict

from rm_jax.config import load


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a size of configs/llama.py."""
    size = arg or "tiny"
    c = load(f"rm_jax:instructgpt:{size}")
    c.name = f"starling-{size}"
    c.loss.name = "plackett_luce"
    if size == "tiny":
        c.data.world.responses = 7
    return c
