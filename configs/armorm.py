"""ArmoRM (Wang 2024, 2406.12845): ratings, weighed by a gate that reads the prompt.

    rm-jax train --config configs/armorm.py:tiny-rate --workdir runs/rate
    rm-jax train --config configs/armorm.py:tiny-gate --workdir runs/gate \\
        --config.model.init=runs/rate --config.model.head.init=keep

arg: SIZE-STAGE, SIZE of configs/llama.py. rate: squared error of each rating, for which
the paper solves a ridge regression on a frozen model; gate: Bradley-Terry with only the
gate trained, at the paper's rate and batch. The gate is the paper's: 3 hidden layers of
1024, dropout .2, temperature 10; tiny has 3 of 32. Of each rating a share of the
verbosity is taken off. The paper fits one a rating until it no longer goes with the
verbosity, ours is .1 of all: give those of your data as a mapping to
config.model.head.debias, to both stages alike. Full size on the five ratings of
HelpSteer2; the paper's nineteen and its 80,000 pairs are of many sets. From random
parameters unless --config.model.init=RUN, and a frozen trunk should not be random.
"""

from ml_collections import ConfigDict

from rm_jax.config import load

STAGES = ("rate", "gate")


def get_config(arg: str = "tiny-rate") -> ConfigDict:
    """The config of SIZE-STAGE."""
    size, _, stage = (arg or "tiny-rate").partition("-")
    if stage not in STAGES:
        raise ValueError(f"armorm:{arg}: want SIZE-STAGE of {list(STAGES)}")
    c = load(f"rm_jax:helpsteer2:{size}-reg")
    c.name = f"armorm-{size}-{stage}"
    c.model.head = ConfigDict(
        {
            "name": "gated",
            "init": "zero" if stage == "rate" else "normal",
            "hidden": (32 if size == "tiny" else 1024,) * 3,
            "dropout": 0.2,
            "temperature": 10.0,
            "verbosity": "verbosity",
            "debias": 0.1,  # ours
        }
    )
    trained = "^head/attributes/"
    if stage == "gate":
        c.loss.name = "bt"
        trained = "^head/(hidden|gate)"
    if size != "tiny" or stage == "gate":
        c.optim.lr_multipliers = ((trained, 1.0), (".*", 0.0))
    if size == "tiny":
        return c
    c.batch.examples = 1024
    c.optim.learning_rate = 1e-3
    c.optim.schedule = "cosine"
    c.train.duration = "2000 steps"
    return c
