"""Which tensors of Hugging Face hold which of our parameters, and how to turn them.

Rules are data: names of theirs, names of ours, and the name of a pair of functions
between the two, so that import and export cannot disagree.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from rm_jax.models.arch import ArchConfig


class Rule(NamedTuple):
    """Tensors of theirs that hold the same numbers as parameters of ours.

    Attributes:
      theirs: names after the prefix; "{i}" is the layer.
      ours: names with one name a layer (masks.parameter_names); "{i}" is the layer.
      turn: name in TURNS of the way from one to the other.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    turn: str = "same"


class Turn(NamedTuple):
    """Functions of (arch, *tensors) -> tensors; reshapes of numpy or jax arrays."""

    to_ours: Callable[..., tuple]
    to_theirs: Callable[..., tuple]


def _same(arch: ArchConfig, x: Any) -> tuple:
    return (x,)


def _transposed(arch: ArchConfig, x: Any) -> tuple:
    return (x.T,)


def _split(n: int, axis: int, transpose: bool) -> Turn:
    """n matrices or vectors side by side along an axis of theirs."""

    def to_ours(arch, x):
        size = x.shape[axis] // n
        cut = lambda i: (slice(None),) * axis + (slice(i * size, (i + 1) * size),)
        parts = [x[cut(i)] for i in range(n)]
        return tuple(p.T if transpose else p for p in parts)

    def to_theirs(arch, *parts):
        return (jnp.concatenate([p.T if transpose else p for p in parts], axis=axis),)

    return Turn(to_ours, to_theirs)


def _interleaved(transpose: bool) -> Turn:
    """q, k and v of head 0, then of head 1, ... (GPT-NeoX)."""

    def to_ours(arch, x):
        rows = x.reshape(arch.n_heads, 3, arch.head_dim, *x.shape[1:])
        parts = [rows[:, i].reshape(-1, *x.shape[1:]) for i in range(3)]
        return tuple(p.T if transpose else p for p in parts)

    def to_theirs(arch, *parts):
        rows = [p.T if transpose else p for p in parts]
        split = [r.reshape(arch.n_heads, arch.head_dim, *r.shape[1:]) for r in rows]
        return (jnp.stack(split, axis=1).reshape(-1, *rows[0].shape[1:]),)

    return Turn(to_ours, to_theirs)


def _after_first(n: int) -> Turn:
    """A table of positions whose first n rows are of no position, plus type 0."""

    def to_ours(arch, table, types):
        return (table[n:] + types[:1],)

    def to_theirs(arch, table):
        none = jnp.zeros((n, table.shape[1]), table.dtype)
        types = jnp.zeros((1, table.shape[1]), table.dtype)
        return jnp.concatenate([none, table]), types

    return Turn(to_ours, to_theirs)


TURNS: dict[str, Turn] = {
    "same": Turn(_same, _same),
    "kernel": Turn(_transposed, _transposed),
    "beside": _split(3, 1, False),  # kernels that are not transposed (GPT-2)
    "thirds": _split(3, 0, True),
    "third_biases": _split(3, 0, False),
    "halves": _split(2, 0, True),
    "half_biases": _split(2, 0, False),
    "heads": _interleaved(True),
    "head_biases": _interleaved(False),
    "positions": _after_first(0),
    "positions_after_pad": _after_first(2),
}


def _layer(theirs: str, ours: str, turn: str) -> tuple[Rule, ...]:
    """Of a weight, and of its bias."""
    return (
        Rule((f"{theirs}.weight",), (f"{ours}/kernel",), turn),
        Rule((f"{theirs}.bias",), (f"{ours}/bias",)),
    )


def _norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule((f"{theirs}.weight",), (f"{ours}/scale",)),
        Rule((f"{theirs}.bias",), (f"{ours}/bias",)),
    )


def _fused(
    theirs: str, ours: Sequence[str], weights: str, biases: str
) -> tuple[Rule, ...]:
    return (
        Rule((f"{theirs}.weight",), tuple(f"{o}/kernel" for o in ours), weights),
        Rule((f"{theirs}.bias",), tuple(f"{o}/bias" for o in ours), biases),
    )


def _at(place: str, rules: Mapping[str, str], make: Callable) -> tuple[Rule, ...]:
    return sum((make(place + a, f"layers/{{i}}/{b}") for a, b in rules.items()), ())


def _kernel(theirs: str, ours: str) -> tuple[Rule, ...]:
    return _layer(theirs, ours, "kernel")


def _plain(theirs: str, ours: str) -> tuple[Rule, ...]:
    return _layer(theirs, ours, "same")


def _llama_rules(norms: Mapping[str, str]) -> tuple[Rule, ...]:
    kernels = {f"self_attn.{n}_proj": f"attn/{n}" for n in "qkvo"}
    kernels |= {f"mlp.{n}_proj": f"mlp/{n}" for n in ("gate", "up", "down")}
    inner = {f"self_attn.{n}_norm": f"attn/{n}_norm" for n in "qk"}
    return (
        Rule(("embed_tokens.weight",), ("embed/embedding",)),
        *_at("layers.{i}.", norms | inner, _norm),
        *_at("layers.{i}.", kernels, _kernel),
        *_norm("norm", "final_norm"),
    )


QKV = tuple(f"layers/{{i}}/attn/{n}" for n in "qkv")
GATE_UP = ("layers/{i}/mlp/gate", "layers/{i}/mlp/up")
BEFORE = {"input_layernorm": "norm1", "post_attention_layernorm": "norm2"}
OUTPUTS = {
    "post_attention_layernorm": "norm1_out",
    "post_feedforward_layernorm": "norm2_out",
}
BOTH = OUTPUTS | {"input_layernorm": "norm1", "pre_feedforward_layernorm": "norm2"}
GPT_NEOX = (
    Rule(("embed_in.weight",), ("embed/embedding",)),
    *_at("layers.{i}.", BEFORE, _norm),
    *_fused("layers.{i}.attention.query_key_value", QKV, "heads", "head_biases"),
    *_at(
        "layers.{i}.",
        {
            "attention.dense": "attn/o",
            "mlp.dense_h_to_4h": "mlp/up",
            "mlp.dense_4h_to_h": "mlp/down",
        },
        _kernel,
    ),
    *_norm("final_layer_norm", "final_norm"),
)
GPT2 = (
    Rule(("wte.weight",), ("embed/embedding",)),
    Rule(("wpe.weight",), ("positions/embedding",)),
    *_at("h.{i}.", {"ln_1": "norm1", "ln_2": "norm2"}, _norm),
    *_fused("h.{i}.attn.c_attn", QKV, "beside", "third_biases"),
    *_at(
        "h.{i}.",
        {"attn.c_proj": "attn/o", "mlp.c_fc": "mlp/up", "mlp.c_proj": "mlp/down"},
        _plain,
    ),
    *_norm("ln_f", "final_norm"),
)
MODERNBERT = (
    Rule(("embeddings.tok_embeddings.weight",), ("embed/embedding",)),
    *_norm("embeddings.norm", "embed_norm"),
    *_at("layers.{i}.", {"attn_norm": "norm1", "mlp_norm": "norm2"}, _norm),
    *_fused("layers.{i}.attn.Wqkv", QKV, "thirds", "third_biases"),
    *_fused("layers.{i}.mlp.Wi", GATE_UP, "halves", "half_biases"),
    *_at("layers.{i}.", {"attn.Wo": "attn/o", "mlp.Wo": "mlp/down"}, _kernel),
    *_norm("final_norm", "final_norm"),
)


def _bert_rules(attention: Mapping[str, str]) -> tuple[Rule, ...]:
    kernels = {f"attention.self.{a}": f"attn/{b}" for a, b in attention.items()}
    kernels |= {
        "attention.output.dense": "attn/o",
        "intermediate.dense": "mlp/up",
        "output.dense": "mlp/down",
    }
    norms = {"attention.output.LayerNorm": "norm1", "output.LayerNorm": "norm2"}
    return (
        Rule(("embeddings.word_embeddings.weight",), ("embed/embedding",)),
        *_norm("embeddings.LayerNorm", "embed_norm"),
        *_at("encoder.layer.{i}.", norms, _norm),
        *_at("encoder.layer.{i}.", kernels, _kernel),
    )


def _positions(turn: str) -> Rule:
    table, types = "position_embeddings.weight", "token_type_embeddings.weight"
    theirs = (f"embeddings.{table}", f"embeddings.{types}")
    return Rule(theirs, ("positions/embedding",), turn)


BERT = _bert_rules({"query": "q", "key": "k", "value": "v"})
DEBERTA = (
    *_bert_rules({"query_proj": "q", "key_proj": "k", "value_proj": "v"}),
    Rule(("encoder.rel_embeddings.weight",), ("distances/embedding",)),
    *_norm("encoder.LayerNorm", "distances_norm"),
)


LLAMA, GEMMA, OLMO2 = (_llama_rules(norms) for norms in (BEFORE, BOTH, OUTPUTS))
BERT_AND_POSITIONS = (*BERT, _positions("positions"))
ROBERTA = (*BERT, _positions("positions_after_pad"))
