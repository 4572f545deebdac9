"""The terms of a scoring contract: what contract.json says, and its strict reading.

>>> normalisation = Normalisation(mean=1.5, std=2.0, reference="hh-test")
"""

import dataclasses
import hashlib
import json
import math
from typing import Any

from rm_jax import schemas

CHOICES = {
    "bos": ("one", "none"),
    "eos": ("template", "append"),
    "truncation_side": ("left", "right"),
    "over_long": ("truncate", "drop", "error"),
    "pooling": ("last", "mean", "sum"),
}


class ContractError(ValueError):
    """A contract that cannot hold, or a record that breaks it."""


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """Reported reward = (score - mean) / std, measured on the set `reference`."""

    mean: float = 0.0
    std: float = 1.0
    reference: str = ""


@dataclasses.dataclass(frozen=True)
class Contract:
    """How text becomes tokens and a score becomes a reward.

    Attributes:
      schema_version: version of this list of fields.
      tokenizer: the spec it was built from.
      tokenizer_sha: sha256 of its content.
      template: text of the chat template.
      template_sha256: sha256 of that text.
      bos: "one", the prompt begins with exactly one BOS, added if the template prints
        none; "none", it does not begin with one.
      eos: "template", a response ends as the template ends it; "append", the EOS token
        follows unless it already is the last token.
      max_length: tokens of a prompt and one response.
      max_response: tokens of one response, closing tokens of the template included.
      truncation_side: where a prompt is cut: "left" keeps its end, "right" its start.
      over_long: what happens to a record that does not fit.
      pooling: which tokens of a response are scored.
      normalisation: of the reported reward.
      temperature: P(a beats b) = sigmoid((reward_a - reward_b) / temperature).
    """

    schema_version: int
    tokenizer: str
    tokenizer_sha: str
    template: str
    template_sha256: str
    bos: str
    eos: str
    max_length: int
    max_response: int
    truncation_side: str
    over_long: str
    pooling: str
    normalisation: Normalisation = Normalisation()
    temperature: float = 1.0

    def __post_init__(self):
        _check(self)

    def to_json(self) -> str:
        """JSON text; `from_json` reads it back unchanged."""
        value = dataclasses.asdict(self)
        return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Contract":
        """Reads `to_json`'s text; every field must be there and nothing else.

        Raises:
          ContractError: naming the field and what is wrong with it.
        """
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise ContractError(f"contract: not JSON: {error}") from None
        version = value.get("schema_version") if isinstance(value, dict) else None
        if why := schemas.problem("contract.json", version):
            raise ContractError(f"contract: {why}")
        _check_keys(value, cls)
        _check_keys(value["normalisation"], Normalisation)
        value["normalisation"] = Normalisation(**value["normalisation"])
        return cls(**value)

    def sha(self) -> str:
        """sha256 of everything in the contract."""
        return sha256_text(self.to_json())

    def token_sha(self) -> str:
        """sha256 of what decides the tokens: names a token cache.

        Pooling, normalisation, temperature and the name of the tokenizer (its content
        counts) leave it as it is.
        """
        value = dataclasses.asdict(self)
        for name in ("tokenizer", "pooling", "normalisation", "temperature"):
            del value[name]
        return sha256_text(json.dumps(value, sort_keys=True))


def _check(c: Contract) -> None:
    """Raises on the first field that cannot be."""
    _check_types(c)
    _check_types(c.normalisation)
    for name, known in CHOICES.items():
        value = getattr(c, name)
        if value not in known:
            raise ContractError(f"contract.{name} = {value!r}: known are {list(known)}")
    if not 1 <= c.max_response < c.max_length:
        raise ContractError(
            f"contract.max_response = {c.max_response}: want 1 to {c.max_length - 1}, "
            "below contract.max_length, so that a token of the prompt fits"
        )
    positive = {"normalisation.std": c.normalisation.std, "temperature": c.temperature}
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ContractError(f"contract.{name} = {value}: want finite and above 0")
    if not math.isfinite(c.normalisation.mean):
        raise ContractError(f"contract.normalisation.mean = {c.normalisation.mean}")
    if sha256_text(c.template) != c.template_sha256:
        raise ContractError(
            "contract.template_sha256 is not the sha256 of contract.template: one of "
            "them was changed by hand"
        )


def _check_types(value: Any) -> None:
    for field in dataclasses.fields(value):
        found = getattr(value, field.name)
        if type(found) is not field.type and (field.type, type(found)) != (float, int):
            raise ContractError(
                f"{type(value).__name__} field {field.name} = {found!r}: want "
                f"{field.type.__name__}"
            )


def _check_keys(value: Any, cls: type) -> None:
    known = {f.name for f in dataclasses.fields(cls)}
    found = set(value) if isinstance(value, dict) else set()
    if found != known:
        raise ContractError(
            f"{cls.__name__}: unknown fields {sorted(found - known)}, missing fields "
            f"{sorted(known - found)}"
        )


def sha256_text(text: str) -> str:
    """sha256 of the text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()
