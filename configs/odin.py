"""ODIN (Chen 2024, 2402.07319): a head for length is trained beside, and thrown away.

    rm-jax train --config configs/odin.py:tiny --workdir runs/odin \\
        --config.data.train=hh:helpful-base.test.jsonl.gz

r = quality + length while training, with |rho(quality, L)| + 1 - rho(length, L) over
the whole batch and |w_Q . w_L|, both coefficients 1; quality alone after it. arg: a
size of configs/hh.py. Beyond tiny: the paper's rate 2e-5 without warm-up, weight decay
.1, three epochs; the batch is that of configs/hh.py.
"""

from ml_collections import ConfigDict

from rm_jax.config import load


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a size of configs/hh.py."""
    size = arg or "tiny"
    c = load(f"rm_jax:hh:{size}")
    c.name = f"odin-{size}"
    c.model.head.name = "odin"
    c.model.head.init = "normal"
    c.loss.name = "bt"
    c.loss.regularizers = ConfigDict(
        {"odin": {"weight": 1.0}, "odin_orthogonal": {"weight": 1.0}}
    )
    if size != "tiny":
        c.optim.learning_rate = 2e-5
        c.optim.warmup = "0 steps"
        c.optim.weight_decay = 0.1
        c.train.duration = "3 epochs"
    return c
