"""A Llama in numpy, float64, written from the paper: what models are compared with."""

import numpy as np


def logits(source, tokens) -> np.ndarray:
    """[t, vocab] of a `Source` of model_type llama (no biases); reads tensor by tensor.

    x += O attention(rope(Q n(x)), rope(K n(x)), V n(x)); x += D(silu(G n(x)) * U n(x));
    rope turns features (i, i + d/2) of a head by position * base^(-2i/d).
    """
    config = source.config
    weight = lambda name: source.tensors[f"{name}.weight"].read().astype(np.float64)
    heads, kv, d = (
        config[name]
        for name in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    t = len(tokens)
    angles = np.outer(np.arange(t), config["rope_theta"] ** (-np.arange(0, d, 2) / d))
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]  # [t, 1, d/2]

    def norm(x, name):
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean + config["rms_norm_eps"]) * weight(name)

    def rope(x):  # [t, h, d]
        a, b = x[..., : d // 2], x[..., d // 2 :]
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    x = weight("model.embed_tokens")[np.asarray(tokens)]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        n = norm(x, f"{at}.input_layernorm")
        project = lambda p, h, at=at, n=n: (
            n @ weight(f"{at}.self_attn.{p}").T
        ).reshape(t, h, d)
        q, k = rope(project("q_proj", heads)), rope(project("k_proj", kv))
        k, v = (np.repeat(a, heads // kv, axis=1) for a in (k, project("v_proj", kv)))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(d)
        scores = np.where(np.tri(t, dtype=bool), scores, -np.inf)
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", p, v).reshape(t, heads * d)
        x = x + mixed @ weight(f"{at}.self_attn.o_proj").T
        n = norm(x, f"{at}.post_attention_layernorm")
        gate = n @ weight(f"{at}.mlp.gate_proj").T
        up = n @ weight(f"{at}.mlp.up_proj").T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weight(f"{at}.mlp.down_proj").T
    tied = config["tie_word_embeddings"]
    out = weight("model.embed_tokens" if tied else "lm_head")
    return norm(x, "model.norm") @ out.T
