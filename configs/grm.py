"""GRM (Yang 2024, 2406.10216): the language-model head kept as a regulariser.

    rm-jax train --config configs/grm.py:tiny --workdir runs/grm \\
        --config.data.train=hh:helpful-base.test.jsonl.gz

bt + (alpha / (1 - alpha)) sp(-beta log p(chosen)), alpha = .01, beta = .1, on a head
of one hidden layer of 1,024 with dropout .1. arg: a size of configs/hh.py. 8b has the
paper's adapters (rank 32, alpha 64 on q, k, v, o) and rate of 40,000 pairs; it needs
--config.model.init=RUN, a trunk to adapt.
"""

from ml_collections import ConfigDict

from rm_jax.config import load


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a size of configs/hh.py."""
    size = arg or "tiny"
    c = load(f"rm_jax:hh:{size}")
    c.name = f"grm-{size}"
    c.model.head.name = "mlp"
    c.model.lm_head = "tied"
    if size == "tiny":
        c.model.head.hidden = (128,)
    else:
        c.model.head.hidden = (1024,)
    c.model.head.dropout = 0.1
    c.loss.name = "bt"
    c.loss.regularizers = ConfigDict({"grm_sft": {"weight": 0.01 / 0.99, "beta": 0.1}})
    if size == "8b":
        c.model.lora.rank = 32
        c.model.lora.alpha = 64.0
        c.model.lora.dropout = 0.05
        c.model.lora.targets = ("q", "k", "v", "o")
        c.optim.learning_rate = 1e-5
        c.train.duration = "2 epochs"
    return c
