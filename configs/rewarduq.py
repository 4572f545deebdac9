"""RewardUQ (2026): twenty small heads on one frozen trunk.

    rm-jax train --config configs/rewarduq.py --workdir runs/rewarduq \\
        --config.model.init=RUN

Each head has two hidden layers of 128 and its own weights of the examples; rewards are
centred, .01. The paper draws each head towards its start (.1), which rm_jax does not.
Bounds are the mean +- 2 standard deviations. arg: a size of configs/llama.py. Full
size: the paper's rate, on UltraFeedback; batch and epochs are not verified. RUN is the
trunk that the heads read: without one it is random.
"""

from ml_collections import ConfigDict

from rm_jax.config import load


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a size of configs/llama.py."""
    size = arg or "tiny"
    c = load(f"rm_jax:llama:{size}")
    c.name = f"rewarduq-{size}"
    c.members.count = 20
    c.members.share = "trunk"
    c.model.head.name = "mlp"
    c.model.head.hidden = (128, 128)
    c.model.head.dropout = 0.0
    c.data.bootstrap = "poisson"
    c.loss = ConfigDict({"name": "bt", "regularizers": {"center": {"weight": 0.01}}})
    c.optim.lr_multipliers = (("^head/", 1.0), (".*", 0.0))
    if size != "tiny":
        c.data.train = "preset:ultrafeedback"
        c.optim.learning_rate = 1e-4
    return c
