"""Skywork-Reward (Liu 2024, 2410.18451): 80,000 curated pairs, and the choice of loss.

    rm-jax train --config configs/skywork.py --workdir runs/skywork
    rm-jax train --config configs/skywork.py:8b-focal --workdir runs/skywork-focal

arg: SIZE-LOSS, SIZE of configs/llama.py, LOSS one of LOSSES. The paper finds bt best.
Full size: 80K v0.2 with batch 128 and two epochs, which are from memory, as the
constants of the losses are; the rate is that of configs/llama.py. From random
parameters unless --config.model.init=RUN.
"""

from ml_collections import ConfigDict

from rm_jax.config import load

LOSSES = {
    "bt": {"name": "bt"},
    "focal": {"name": "focal"},
    "focal_penalty": {"name": "focal_penalty"},
    "hinge": {"name": "hinge"},
    "margin_mse": {"name": "margin_mse"},
    "temperature": {"name": "tempered_bt", "temperature": 2.0},
    "tempered": {"name": "tempered_bt", "t": 0.8},
    "ce": {"name": "ce_pointwise"},
}


def get_config(arg: str = "tiny-bt") -> ConfigDict:
    """The config of SIZE-LOSS."""
    size, _, loss = (arg or "tiny-bt").partition("-")
    if loss not in LOSSES:
        raise ValueError(f"skywork:{arg}: want SIZE-LOSS of {list(LOSSES)}")
    c = load(f"rm_jax:llama:{size}")
    c.name = f"skywork-{size}-{loss}"
    c.loss = ConfigDict({**LOSSES[loss], "regularizers": {}})
    if size == "tiny":
        return c
    c.data.train = "preset:skywork_80k"
    c.batch.examples = 128
    c.train.duration = "2 epochs"
    return c
