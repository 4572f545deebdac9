"""WARM (Rame 2024, 2401.12187): one model, the mean of the weights of several runs.

    for i in 0 1 2; do rm-jax train --config configs/warm.py --workdir runs/warm$i \\
        --config.model.init=RUN --config.model.head.init=keep \\
        --config.data_seed=$i --config.dropout_seed=$i; done
    rm-jax average runs/warm0 runs/warm1 runs/warm2 --to runs/warm

The runs start from one trunk with one head, trained on the frozen trunk first; without
that their mean is no model. arg: SIZE-STAGE, SIZE of configs/llama.py, STAGE probe (the
head alone, to be the RUN) or tune (one of the runs). Full size: 10,000 steps of 128;
six runs with rates 1e-5, 4e-5 and 1e-4 (from a summary) and different dropout. The
labels of PaLM are not public, so TL;DR of people. A quarter turned round, as in the
paper's study of noise, is --config.data.label_noise=.25. From random parameters unless
model.init.
"""

from ml_collections import ConfigDict

from rm_jax.config import load

STAGES = ("probe", "tune")


def get_config(arg: str = "tiny-tune") -> ConfigDict:
    """The config of SIZE-STAGE."""
    size, _, stage = (arg or "tiny-tune").partition("-")
    if stage not in STAGES:
        raise ValueError(f"warm:{arg}: want SIZE-STAGE of {list(STAGES)}")
    c = load(f"rm_jax:llama:{size}")
    c.name = f"warm-{size}-{stage}"
    c.loss = ConfigDict({"name": "bt", "regularizers": {}})
    c.model.dropout = 0.05 if stage == "tune" else 0.0
    if stage == "probe":
        c.optim.lr_multipliers = (("^head", 1.0), (".*", 0.0))
    if size == "tiny":
        return c
    c.data.train = "preset:tldr"
    c.batch.examples = 128
    c.optim.learning_rate = 1e-5
    c.train.duration = "10000 steps"
    return c
