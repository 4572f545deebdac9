"""Backbones in the words of Hugging Face: config.json to ArchConfig, names of tensors.

`arch_fields` reads a config.json; `rules` says which of their tensors are which of our
parameters (hf_names.py). Nothing here reads a file.
"""

import re
from collections.abc import Sequence
from typing import Any

from rm_jax.models import hf_checks
from rm_jax.models.arch import ArchConfig
from rm_jax.models.hf_families import FAMILIES, Family
from rm_jax.models.hf_names import Rule
from rm_jax.models.hf_words import Config, UnknownModel


def arch_fields(config: Config) -> dict[str, Any]:
    """Fields of ArchConfig that a config.json decides.

    Raises:
      UnknownModel: a model_type or a value that is not computed here; names it.
    """
    of = family(config)
    fields = of.fields(hf_checks.checked(config, of.defaults))
    hf_checks.check_fields(fields)
    return fields


def family(config: Config) -> Family:
    """What the model_type of a config.json is made of.

    Raises:
      UnknownModel: not one of FAMILIES.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UnknownModel(
            f"config.json: model_type = {name!r:.80}; known: {sorted(FAMILIES)}"
        )
    return FAMILIES[name]


def rules(config: Config, arch: ArchConfig, ours: Sequence[str]) -> tuple[Rule, ...]:
    """The rules of a model, one a layer where they are about layers.

    Args:
      config: config.json.
      arch: what `arch_fields` made of it.
      ours: names of the model's parameters; a rule about others is left out, as that
        of a bias that the model has not.
    """
    have, out = set(ours), []
    for rule in family(config).rules:
        of_layers = any("{i}" in name for name in rule.theirs)
        for i in range(arch.n_layers if of_layers else 1):
            put = lambda names, i=i: tuple(n.replace("{i}", str(i)) for n in names)
            one = Rule(put(rule.theirs), put(rule.ours), rule.turn)
            if have.issuperset(one.ours):
                out.append(one)
    return tuple(out)


def layers_beyond(config: Config, arch: ArchConfig) -> set[str]:
    """Tensors of the layers that `arch`, the lowest layers of a model, leaves out."""
    whole = arch_fields(config)["n_layers"]
    return {
        name.replace("{i}", str(i))
        for rule in family(config).rules
        for name in rule.theirs
        for i in range(arch.n_layers, whole)
        if "{i}" in name
    }


def is_ignored(config: Config, name: str) -> bool:
    """Whether a tensor of theirs holds no parameter of a trunk."""
    return any(re.search(pattern, name) for pattern in family(config).ignored)
