"""URM (Lou 2024, 2410.00847): mean and spread of each rating, as people disagree.

    rm-jax train --config configs/urm.py --workdir runs/urm

arg: SIZE-LOSS, SIZE of configs/llama.py, LOSS mle (Gaussian likelihood) or reparam (a
sampled squared error). The reward is the mean of helpfulness. Full size: one epoch of
HelpSteer2 with the paper's rate, weight decay, batch and length, without its gate. The
paper's ensemble of three is --config.members.count=3. From random parameters unless
--config.model.init=RUN.
"""

from ml_collections import ConfigDict

from rm_jax.config import load

LOSSES = ("mle", "reparam")


def get_config(arg: str = "tiny-mle") -> ConfigDict:
    """The config of SIZE-LOSS."""
    size, _, loss = (arg or "tiny-mle").partition("-")
    if loss not in LOSSES:
        raise ValueError(f"urm:{arg}: want SIZE-LOSS of {list(LOSSES)}")
    c = load(f"rm_jax:helpsteer2:{size}-reg")
    c.name = f"urm-{size}-{loss}"
    c.model.head.name = "gaussian"
    c.loss.name = f"gaussian_{loss}"
    if size != "tiny":
        c.batch.examples = 64
        c.optim.schedule = "cosine"  # not verified, nor is the warm-up
        c.optim.weight_decay = 1e-3
        c.train.duration = "1 epochs"
    return c
