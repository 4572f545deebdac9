"""A model folder of Hugging Face with random numbers: a Llama of four narrow layers."""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

LAYERS = 4
CONFIG = {
    "model_type": "llama", "vocab_size": 1024, "hidden_size": 8, "head_dim": 4,
    "intermediate_size": 12, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
    "tie_word_embeddings": True,
}  # fmt: skip


def tensors(vocab: int = 1024, layers: int = LAYERS) -> dict[str, np.ndarray]:
    """Its tensors by name, drawn anew with every call, the same."""
    rng = np.random.default_rng(0)
    draw = lambda *n: (rng.standard_normal(n) * n[-1] ** -0.5).astype(np.float32)
    out = {"model.embed_tokens.weight": draw(vocab, 8), "model.norm.weight": draw(8)}
    for i in range(layers):
        at = f"model.layers.{i}"
        out |= {
            f"{at}.self_attn.q_proj.weight": draw(8, 8),
            f"{at}.self_attn.k_proj.weight": draw(4, 8),
            f"{at}.self_attn.v_proj.weight": draw(4, 8),
            f"{at}.self_attn.o_proj.weight": draw(8, 8),
            f"{at}.mlp.gate_proj.weight": draw(12, 8),
            f"{at}.mlp.up_proj.weight": draw(12, 8),
            f"{at}.mlp.down_proj.weight": draw(8, 12),
            f"{at}.input_layernorm.weight": draw(8),
            f"{at}.post_attention_layernorm.weight": draw(8),
        }
    return out


def write(folder: pathlib.Path) -> str:
    """Writes it; returns what config.model.init calls it."""
    folder.mkdir(exist_ok=True)
    save_file(tensors(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return f"hf:{folder}"
