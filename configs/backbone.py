"""Bradley-Terry on open backbones at full size: the recipe of configs/llama.py.

    rm-jax train --config configs/backbone.py:qwen3-8b --workdir gs://BUCKET/qwen3-8b

arg: llama3.1-8b, qwen3-8b, gemma2-9b, gemma2-27b: instruction-tuned weights of the hub
(Llama and Gemma want a login), preference_700K, RLHFlow's rates (Dong 2024,
2405.07863). Written for 32 chips of 32 GB, a v6e-32, and gemma2-27b for 128 of them
(float32 parameters, gradients and two moments: 16 bytes a parameter); another slice is
--config.mesh.fsdp. None has been run at full size by us.
"""

from ml_collections import ConfigDict

from rm_jax.config import load

# weights, fsdp of the mesh, rows of 4096 tokens in a chunk: one a chip; contract.bos:
# Qwen3's tokenizer has no BOS
ARGS = {
    "llama3.1-8b": ("meta-llama/Llama-3.1-8B-Instruct", 16, 32, "one"),
    "qwen3-8b": ("Qwen/Qwen3-8B", 16, 32, "none"),
    "gemma2-9b": ("google/gemma-2-9b-it", 32, 32, "one"),
    "gemma2-27b": ("google/gemma-2-27b-it", 64, 128, "one"),
}


def get_config(arg: str = "llama3.1-8b") -> ConfigDict:
    """The config of one of ARGS."""
    arg = arg or "llama3.1-8b"
    if arg not in ARGS:
        raise ValueError(f"backbone has no {arg!r}; known: {list(ARGS)}")
    weights, fsdp, rows, bos = ARGS[arg]
    c = load("rm_jax:llama:8b")
    c.name = f"backbone-{arg}"
    c.contract.tokenizer = "init"
    c.contract.bos = bos
    c.model.arch = "init"
    c.model.init = f"hf:{weights}"
    c.mesh.fsdp = fsdp
    c.mesh.data = rows // fsdp
    c.batch.chunk_tokens = rows * 4096
    return c
