"""Secrets of RLHF II (Wang 2024, 2401.06080): labels from what an ensemble thinks.

    rm-jax train --config configs/secrets2.py --workdir runs/secrets2

arg: SIZE-LABEL, SIZE of configs/llama.py, LABEL soft (the probability of the
preference, for pairs in doubt) or margin (the mean difference of rewards, for clear
ones). In the tiny world ten annotators stand in for the ten models. Full size: the
paper's rate, batch and steps, on your file of HH-RLHF with `soft` or `strength` of an
ensemble. From random parameters unless --config.model.init=RUN.
"""

from ml_collections import ConfigDict

from rm_jax.config import load

LABELS = {"soft": "soft_label", "margin": "adaptive_margin"}


def get_config(arg: str = "tiny-soft") -> ConfigDict:
    """The config of SIZE-LABEL."""
    size, _, label = (arg or "tiny-soft").partition("-")
    if label not in LABELS:
        raise ValueError(f"secrets2:{arg}: want SIZE-LABEL of {list(LABELS)}")
    c = load(f"rm_jax:llama:{size}")
    c.name = f"secrets2-{size}-{label}"
    c.loss = ConfigDict({"name": LABELS[label], "regularizers": {}})
    if size == "tiny":
        c.data.world.annotators = 10 if label == "soft" else 1
        c.data.world.noise = 0.25
        return c
    c.data.train = "jsonl:hh_strength.jsonl"
    c.batch.examples = 32
    c.optim.learning_rate = 5e-6
    c.optim.warmup = "0 steps"  # not verified, nor are schedule and weight decay
    c.train.duration = "1000 steps"
    return c
