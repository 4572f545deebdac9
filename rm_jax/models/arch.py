"""What a backbone is made of: plain values, saved as arch.json in checkpoints."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rm_jax import schemas

# Keys of config.model that are fields of ArchConfig as they stand.
COPIED = (
    "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "windows", "attention",
    "attention_block", "rope_base", "norm_eps", "lm_head", "dropout", "dtype", "remat",
)  # fmt: skip
PAIRS = ("head_knobs", "rope_scaling")  # fields that are mappings in arch.json


@dataclasses.dataclass(frozen=True)
class ArchConfig:
    """A transformer. Sizes are counts of features, lengths are tokens.

    The defaults are what `config.model` makes, a Llama; the fields from `norm` on are
    for backbones read from elsewhere (models/hf_families.py).

    Attributes:
      vocab_size: rows of the embedding.
      d_model: width of the residual stream.
      n_layers: blocks.
      n_heads: query heads.
      n_kv_heads: key and value heads; divides n_heads (grouped-query attention).
      head_dim: features a head.
      d_ff: hidden features of the gated MLP.
      windows: attention window a layer, repeated over the layers; 0 is unlimited.
      attention: "causal" or "full".
      attention_block: tokens of a block of the attention matrix.
      rope_base: base of the rotary frequencies.
      norm_eps: added to the mean square in norms.
      lm_head: "none", "tied" (the embedding) or "untied".
      dropout: rate on each block's two outputs.
      dtype: compute type; parameters are float32.
      remat: "none" or "layer".
      pooling: "last", "mean" or "sum" over a response's tokens.
      head_init: "zero" or "normal" with variance 1/(n + 1), n the inputs of the head.
      head: name in models.heads.HEADS, or package.module:HEAD.
      head_knobs: (name, value) of every knob of that head.
      attributes: names of the ratings that heads with attributes give.
      lora_rank: of adapters; 0 is none.
      lora_alpha: adapters are multiplied with lora_alpha / lora_rank (`lora_scale`).
      lora_dropout: rate on the inputs of adapters.
      lora_targets: kernels with an adapter, names in models.lora.TARGETS.
      norm: "rms", "rms_plus_one" (its scale is 1 + a parameter) or "layer".
      norm_at: "before" attention and MLP, on their "outputs", "both", or "after_sum",
        on the sum with the residual.
      first_norm: whether the first layer has its norm before attention.
      final_norm: whether the last layer is followed by one.
      embed_norm: whether the embeddings are.
      qk_norm: "none", a norm of each "head" of queries and keys, or of "all" together.
      parallel: attention and MLP both read the block's input (GPT-NeoX).
      biases: of q, k, v, o, gate, up, down and norm, those with a bias.
      gated: whether the MLP is down(act(gate) * up), else down(act(up)).
      activation: of the MLP, a name in models.transformer.ACTIVATIONS.
      positions: "rotary"; "learned", a table added to the embeddings; or "relative",
        disentangled attention (DeBERTa, He et al. 2021).
      position_rows: of the table of positions, or of relative distances.
      relative_distance: tokens beyond which relative distances are alike.
      rotary_dim: features of a head that are rotated; 0 is all.
      rope_scaling: (name, value) of the rule for long contexts (models/rope.py).
      rope_local_base: base in layers with a window, unscaled; 0 is as in the others.
      query_scale: of query-key products; 0 is head_dim^-0.5.
      attention_cap: products s become cap tanh(s / cap); 0 is off.
      logit_cap: the same for the logits of tokens.
      embed_scale: embeddings are multiplied with it.
      lora_rslora: adapters are multiplied with lora_alpha / sqrt(lora_rank) instead.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    windows: tuple[int, ...] = (0,)
    attention: str = "causal"
    attention_block: int = 128
    rope_base: float = 10000.0
    norm_eps: float = 1e-6
    lm_head: str = "none"
    dropout: float = 0.0
    dtype: str = "float32"
    remat: str = "none"
    pooling: str = "last"
    head_init: str = "zero"
    head: str = "linear"
    head_knobs: tuple[tuple[str, Any], ...] = ()
    attributes: tuple[str, ...] = ()
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ()
    norm: str = "rms"
    norm_at: str = "before"
    first_norm: bool = True
    final_norm: bool = True
    embed_norm: bool = False
    qk_norm: str = "none"
    parallel: bool = False
    biases: tuple[str, ...] = ()
    gated: bool = True
    activation: str = "silu"
    positions: str = "rotary"
    position_rows: int = 0
    relative_distance: int = 0
    rotary_dim: int = 0
    rope_scaling: tuple[tuple[str, Any], ...] = ()
    rope_local_base: float = 0.0
    query_scale: float = 0.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    embed_scale: float = 1.0
    lora_rslora: bool = False

    def knob(self, name: str) -> Any:
        """A knob of the head."""
        return dict(self.head_knobs)[name]

    @property
    def lora_scale(self) -> float:
        """What adapters are multiplied with (rsLoRA: Kalajdzievski 2023)."""
        return self.lora_alpha / self.lora_rank ** (0.5 if self.lora_rslora else 1)

    @property
    def drops(self) -> bool:
        """Whether a training pass of the trunk draws what to drop."""
        return self.dropout > 0 or (self.lora_rank > 0 and self.lora_dropout > 0)

    @property
    def pattern(self) -> int:
        """Layers in one repetition of `windows`."""
        return len(self.windows)

    @property
    def groups(self) -> int:
        """Whole repetitions that are stacked and scanned; the last layer never is.

        There is none where the first layer is unlike the others.
        """
        return (self.n_layers - 1) // self.pattern if self.first_norm else 0

    def window(self, layer: int) -> int:
        """Attention window of a layer; 0 is unlimited."""
        return self.windows[layer % self.pattern]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, and the version of this list of fields."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values = {
            n: dict(_pairs(v)) if n in PAIRS else _thawed(v) for n, v in values.items()
        }
        return schemas.stamped("arch.json", values)


def from_json(values: Mapping[str, Any]) -> ArchConfig:
    """Reads `to_json` back; a missing or unknown field is an error that names it.

    Version 1 knew the one kind of trunk that `decoder` makes.
    """
    known = {f.name for f in dataclasses.fields(ArchConfig)}
    values = schemas.checked("arch.json", dict(values), "arch.json")
    if values.pop(schemas.KEY) == 1:
        names = [f.name for f in dataclasses.fields(ArchConfig)]
        later = dataclasses.fields(ArchConfig)[names.index("norm") :]
        values = {f.name: f.default for f in later} | values
    if set(values) != known:
        raise ValueError(
            f"arch.json: missing {sorted(known - set(values))}, "
            f"unknown {sorted(set(values) - known)}"
        )
    return ArchConfig(**{name: frozen(value) for name, value in values.items()})


# How a trunk is computed, not what it computes (dropout: in training).
RUNTIME = ("attention_block", "dropout", "dtype", "remat")
# What make_arch adds to a trunk.
ADDED = ("head", "head_init", "head_knobs", "attributes")


def without_head(arch: ArchConfig) -> ArchConfig:
    """The trunk of an arch: its head and adapters are the defaults."""
    fields = dataclasses.fields(arch)
    added = [f for f in fields if f.name in ADDED or f.name.startswith("lora_")]
    return dataclasses.replace(arch, **{f.name: f.default for f in added})


def frozen(value: Any) -> Any:
    """Mappings as sorted pairs and lists as tuples: what can be hashed."""
    if hasattr(value, "items"):  # a ConfigDict is a mapping in all but type
        return tuple((name, frozen(value[name])) for name in sorted(value))
    if isinstance(value, list | tuple):
        return tuple(map(frozen, value))
    return value


def _pairs(value: tuple[tuple[str, Any], ...]) -> list[tuple[str, Any]]:
    return [(name, _thawed(v)) for name, v in value]


def _thawed(value: Any) -> Any:
    return list(map(_thawed, value)) if isinstance(value, tuple) else value


def decoder(model: Mapping[str, Any], vocab_size: int, pooling: str) -> ArchConfig:
    """ArchConfig of `config.model` for a tokenizer of `vocab_size` tokens."""
    multiple = model["vocab_multiple"]
    head_dim = model["d_model"] // model["n_heads"]
    if head_dim % 2:
        raise ValueError(
            f"config.model: d_model / n_heads = {head_dim} is odd; rotary positions "
            "turn pairs of features: change one of the two"
        )
    return ArchConfig(
        vocab_size=-(-vocab_size // multiple) * multiple,
        head_dim=head_dim,
        pooling=pooling,
        **{name: model[name] for name in COPIED},
    )
