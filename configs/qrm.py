"""QRM (Dorka 2024, 2409.10164): quantiles of each rating, their mean is the reward.

    rm-jax train --config configs/qrm.py --workdir runs/qrm

arg: a size of configs/llama.py. The paper's 19 attributes and its gate are not here:
this is the quantile head alone, for the reward that of helpfulness, with the data,
rate, weight decay and batch of configs/urm.py. The number of quantiles is not verified.
From random parameters unless --config.model.init=RUN.
"""

from ml_collections import ConfigDict

from rm_jax.config import load


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a size of configs/llama.py."""
    size = arg or "tiny"
    c = load(f"rm_jax:urm:{size}-mle")
    c.name = f"qrm-{size}"
    c.model.head.name = "quantiles"
    c.model.head.quantiles = 5 if size == "tiny" else 19
    c.loss.name = "quantile"
    return c
