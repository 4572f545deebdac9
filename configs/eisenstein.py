"""Eisenstein 2023 (2312.09244): ensembles help, and those of other pretraining more.

    rm-jax train --config configs/eisenstein.py --workdir runs/eisenstein

Five members with centred rewards, weight .01, and their least for the reward. They
differ in head and in the order of the data; with --config.model.init='("RUN1", ...,
"RUN5")' each has a trunk of its own pretraining, too. arg: a size of configs/llama.py;
full size on the paper's TL;DR comparisons. Its T5 of 220M to 3B, rate and batch are not
here: not verified, those of configs/llama.py. Written for 32 chips, a v6e-32, one
member at a time; from random parameters unless model.init.
"""

from ml_collections import ConfigDict

from rm_jax.config import load


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a size of configs/llama.py."""
    size = arg or "tiny"
    c = load(f"rm_jax:llama:{size}")
    c.name = f"eisenstein-{size}"
    c.members.count = 5
    c.members.own_order = True
    c.members.reducer = "min"
    c.loss = ConfigDict({"name": "bt", "regularizers": {"center": {"weight": 0.01}}})
    if size == "tiny":
        c.model.d_model = 32
        c.batch.examples = 32
    else:
        c.data.train = "preset:tldr"
        c.members.at_once = 1
    return c
