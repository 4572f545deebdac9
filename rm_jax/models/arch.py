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


@dataclasses.dataclass(frozen=True)
class ArchConfig:
    """A pre-norm transformer. Sizes are counts of features, lengths are tokens.

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
      norm_eps: added to the mean square in RMSNorm.
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
      lora_alpha: adapters are multiplied with lora_alpha / lora_rank.
      lora_dropout: rate on the inputs of adapters.
      lora_targets: kernels with an adapter, names in models.lora.TARGETS.
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

    def knob(self, name: str) -> Any:
        """A knob of the head."""
        return dict(self.head_knobs)[name]

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
        """Whole repetitions that are stacked and scanned; the last layer never is."""
        return (self.n_layers - 1) // self.pattern

    def window(self, layer: int) -> int:
        """Attention window of a layer; 0 is unlimited."""
        return self.windows[layer % self.pattern]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, and the version of this list of fields."""
        values = dataclasses.asdict(self) | {
            "windows": list(self.windows),
            "head_knobs": {n: _thawed(v) for n, v in self.head_knobs},
            "attributes": list(self.attributes),
            "lora_targets": list(self.lora_targets),
        }
        return schemas.stamped("arch.json", values)


def from_json(values: Mapping[str, Any]) -> ArchConfig:
    """Reads `to_json` back; a missing or unknown field is an error that names it."""
    known = {f.name for f in dataclasses.fields(ArchConfig)}
    values = schemas.checked("arch.json", dict(values), "arch.json")
    values.pop(schemas.KEY)
    if set(values) != known:
        raise ValueError(
            f"arch.json: missing {sorted(known - set(values))}, "
            f"unknown {sorted(set(values) - known)}"
        )
    return ArchConfig(
        **values
        | {
            "windows": tuple(values["windows"]),
            "head_knobs": frozen(values["head_knobs"]),
            "attributes": tuple(values["attributes"]),
            "lora_targets": tuple(values["lora_targets"]),
        }
    )


def frozen(value: Any) -> Any:
    """Mappings as sorted pairs and lists as tuples: what can be hashed."""
    if hasattr(value, "items"):  # a ConfigDict is a mapping in all but type
        return tuple((name, frozen(value[name])) for name in sorted(value))
    if isinstance(value, list | tuple):
        return tuple(map(frozen, value))
    return value


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
