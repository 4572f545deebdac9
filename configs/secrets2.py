"""Secrets of RLHF II (Wang 2024, 2401.06080): labels corrected by an ensemble.

    rm-jax train --config configs/secrets2.py --workdir runs/secrets2

arg: SIZE-RULE, SIZE of configs/llama.py, RULE soft (the probability of the preference),
flip (the fifth of the pairs that the ensemble believes least is turned round) or margin
(the mean difference of rewards). The paper's ten models are an ensemble trained before,
evaluated on the training set; with its predictions a full-size run is

    rm-jax train --config configs/secrets2.py:8b-soft --workdir runs/soft \\
        --config.data.denoise.scores=runs/ten/predictions/seen.parquet

at the paper's rate, batch and steps. In the tiny world annotators stand in for the
models; there flip is plain Bradley-Terry until scores are given. From random parameters
unless --config.model.init=RUN.
"""

from ml_collections import ConfigDict

from rm_jax.config import load

LOSSES = {"soft": "soft_label", "flip": "bt", "margin": "adaptive_margin"}
RULES = {"soft": "soft", "flip": "flip", "margin": "strength"}


def get_config(arg: str = "tiny-soft") -> ConfigDict:
    """The config of SIZE-RULE."""
    size, _, rule = (arg or "tiny-soft").partition("-")
    if rule not in LOSSES:
        raise ValueError(f"secrets2:{arg}: want SIZE-RULE of {list(LOSSES)}")
    c = load(f"rm_jax:llama:{size}")
    c.name = f"secrets2-{size}-{rule}"
    c.loss = ConfigDict({"name": LOSSES[rule], "regularizers": {}})
    c.data.denoise.rule = RULES[rule]
    c.data.denoise.share = 0.2
    if size == "tiny":
        c.data.world.annotators = 10 if rule == "soft" else 1
        c.data.world.noise = 0.25
        return c
    c.data.train = "preset:hh_rlhf"
    c.batch.examples = 32
    c.optim.learning_rate = 5e-6
    c.optim.warmup = "0 steps"  # not verified, nor are schedule and weight decay
    c.train.duration = "1000 steps"
    return c
