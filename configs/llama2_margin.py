"""Llama 2 (Touvron 2023, 2307.09288): a margin that grows with the preference.

    rm-jax train --config configs/llama2_margin.py --workdir runs/margin
    rm-jax train --config configs/llama2_margin.py:8b-large --workdir runs/margin-8b

sp(m - delta). arg: SIZE-MARGIN, SIZE of configs/llama.py, MARGIN none, small (a third
for each grade) or large (one). Grades are 0 to 3: the paper's "negligibly better" is
HelpSteer3's tie. Full size: the paper's rate, warm-up and batch, on HelpSteer3; from
random parameters unless --config.model.init=RUN.
"""

from ml_collections import ConfigDict

from rm_jax.config import load

MARGINS = {"none": 0.0, "small": 1 / 3, "large": 1.0}  # Table 27, reward a grade


def get_config(arg: str = "tiny-small") -> ConfigDict:
    """The config of SIZE-MARGIN."""
    size, _, margin = (arg or "tiny-small").partition("-")
    if margin not in MARGINS:
        raise ValueError(f"llama2_margin:{arg}: want SIZE-MARGIN of {list(MARGINS)}")
    c = load(f"rm_jax:llama:{size}")
    c.name = f"llama2-margin-{size}-{margin}"
    c.loss.name = "margin_bt"
    c.loss.margin = 0.0
    c.loss.margin_strength = MARGINS[margin]
    if size == "tiny":
        c.data.world.strength_levels = 3
        return c
    c.data.train = "preset:helpsteer3"
    del c.loss.regularizers.center
    c.optim.learning_rate = 1e-5  # 5e-6 for 70B
    c.optim.warmup = "0.03 epochs"
    c.optim.final_fraction = 0.1
    c.optim.weight_decay = 0.1  # "as in pretraining"; the value is not verified
    return c
