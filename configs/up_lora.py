"""UP-LoRA (Zhai 2023, 2401.00243): adapters for members, kept apart by a nuclear norm.

    rm-jax train --config configs/up_lora.py --workdir runs/up-lora \\
        --config.model.init=RUN

Five members have a LoRA and a head each, on one frozen trunk; the loss falls where the
A matrices of all of them span more: -weight |A|_* / |A|_F. Their standard deviation is
the uncertainty. arg: a size of configs/llama.py. Full size on HH-RLHF as the paper's
Llama 2 7B; rank, rate, batch and the weight are not verified. RUN is the trunk to
adapt: without one it is random.
"""

from ml_collections import ConfigDict

from rm_jax.config import load


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a size of configs/llama.py."""
    size = arg or "tiny"
    c = load(f"rm_jax:llama:{size}")
    c.name = f"up-lora-{size}"
    c.members.count = 5
    c.members.share = "adapters"
    c.members.reducer = "mean_minus_std:1.0"
    c.model.lora.rank = 4 if size == "tiny" else 32
    c.model.lora.alpha = 2.0 * c.model.lora.rank
    c.loss = ConfigDict(
        {
            "name": "bt",
            "regularizers": {"lora_nnm": {"weight": 0.1}, "center": {"weight": 0.01}},
        }
    )
    if size == "tiny":
        c.model.d_model = 32
        c.batch.examples = 32
    else:
        c.data.train = "preset:hh_rlhf"
        c.optim.learning_rate = 1e-5  # of GRM's adapters
    return c
