"""InfoRM (Miao 2024, 2402.09345): the reward is read from a bottleneck.

    rm-jax train --config configs/inform.py:tiny --workdir runs/inform \\
        --config.data.train=hh:helpful-base.test.jsonl.gz

A latent of 128 (8b: 512) with the KL to N(0, 1) summed over its dimensions; the paper's
scripts average it first, with a weight of 1, which is the regulariser `vib_averaged`;
the weight .1 of the sum is ours. arg: a size of configs/hh.py; 8b has the scripts' rate
9e-6 and batch 64.
"""

from ml_collections import ConfigDict

from rm_jax.config import load


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a size of configs/hh.py."""
    size = arg or "tiny"
    c = load(f"rm_jax:hh:{size}")
    c.name = f"inform-{size}"
    c.model.head.name = "bottleneck"
    c.model.head.latent = 512 if size == "8b" else 128
    c.loss.name = "bt"
    c.loss.regularizers = ConfigDict({"vib": {"weight": 0.1}})
    if size == "8b":
        c.batch.examples = 64
        c.optim.learning_rate = 9e-6
    return c
