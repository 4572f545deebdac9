"""A run's adapters and head as a folder of PEFT, on top of the weights it started from.

The trunk is not in it: it is the base's, which is read and compared before anything is
written, since an adapter on another trunk scores without a word of complaint.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import save_file

from rm_jax import members, models, pretrained
from rm_jax.export import card, files
from rm_jax.export.files import ExportError
from rm_jax.manifest import named
from rm_jax.models import given, hf, hf_out
from rm_jax.models.arch import ArchConfig
from rm_jax.serve.scorer import Scorer
from rm_jax.weights.source import open_source
from rm_jax.weights.tensors import Source

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
INSTEAD = "export without --adapter, which merges"
# Of a tensor's largest value: averages of runs round what was the same in all of them.
ROUNDING = 1e-6
MODEL = "base_model.model."  # PEFT's names begin so
HEAD = f"{MODEL}score.weight"


class Base(NamedTuple):
    """What the adapters of a run are on top of.

    Attributes:
      path: absolute folder, or id of the hub.
      revision: of the hub: a commit; None of a folder.
      config: its config.json.
    """

    path: str
    revision: str | None
    config: Mapping[str, Any]


def bases(scorer: Scorer) -> list[Base]:
    """The base of every member, or of the one model; each holds the run's trunk.

    Raises:
      ExportError: no adapters, or no base that PEFT could put them on; says why.
      WeightsError: a base that cannot be read.
    """
    arch, run = scorer.arch, scorer.config
    if not arch.lora_rank:
        raise ExportError(
            f"{scorer.run}: config.model.lora.rank = 0: the run has no adapters: "
            f"{INSTEAD}"
        )
    starts = given.named(run.model)
    for init in starts:
        if not init.startswith("hf:"):
            raise ExportError(
                f"{scorer.run}: config.model.init = {init!r}: an adapter is loaded on "
                f"top of a model of transformers, 'hf:...': {INSTEAD}"
            )
    hf_out.check_causal(arch)
    if scorer.members is None:
        return [_base(scorer, starts[0], scorer.params)]
    n, share = scorer.members.count, scorer.members.share
    params = [members.take(scorer.params, share, i) for i in range(n)]
    if share == "adapters":  # one trunk
        return [_base(scorer, starts[0], params[0])] * n
    return [_base(scorer, starts[i % len(starts)], params[i]) for i in range(n)]


def _base(scorer: Scorer, init: str, params: Any) -> Base:
    source, arch = open_source(init), scorer.arch
    fields = hf.arch_fields(source.config)
    modules(source.config, arch)
    unlike = sorted(
        name
        for name, value in fields.items()
        if name != "lm_head" and getattr(arch, name) != value
    )
    unlike = unlike or _unlike(source, arch, named(params)[0])
    if unlike:
        raise ExportError(
            f"{scorer.run}: {source.where} is not the trunk of the run: {unlike[0]} "
            f"differs (it has changed since, or the run went on from another run): "
            f"{INSTEAD}"
        )
    path = init.removeprefix("hf:")
    hub, _, commit = source.where.removeprefix("hf:").partition("@")
    if os.path.isdir(path):
        return Base(os.path.abspath(path), None, source.config)
    return Base(hub, commit, source.config)


def _unlike(
    source: Source, arch: ArchConfig, flat: Mapping[str, jax.Array]
) -> list[str]:
    """Paths of trunk parameters that the base does not have, up to rounding."""
    shapes = named(jax.eval_shape(models.functions(arch)[0], jax.random.key(0)))[0]
    home = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=home)
        for path, x in shapes.items()
    }
    out = []
    for path, x in pretrained.load(source, arch, like).items():
        want = np.asarray(x)
        apart = np.abs(np.asarray(flat[path]) - want).max()
        if not apart <= ROUNDING * np.abs(want).max():
            out.append(path)
    return out


class Module(NamedTuple):
    """A linear layer of theirs that has adapters.

    Attributes:
      name: after the prefix; "{i}" is the layer.
      target: what PEFT finds it by in any layer: the shortest end that is its own.
      in_out: whether its weight is [in, out], as Conv1D's of GPT-2.
    """

    name: str
    target: str
    in_out: bool


def modules(config: Mapping[str, Any], arch: ArchConfig) -> dict[str, Module]:
    """Name in arch.lora_targets -> their layer.

    Raises:
      ExportError: their layer is several of ours in one.
    """
    end = ".weight"
    rules = [
        rule
        for rule in hf.family(config).rules
        if rule.ours[0].endswith("/kernel") and rule.theirs[0].endswith(end)
    ]
    short = lambda name, n: ".".join(name.removesuffix(end).split(".")[-n:])
    last = [short(rule.theirs[0], 1) for rule in rules]
    out = {}
    for target in arch.lora_targets:
        (rule,) = (
            r for r in rules if any(o.endswith(f"/{target}/kernel") for o in r.ours)
        )
        name = rule.theirs[0].removesuffix(end)
        if len(rule.ours) > 1:
            raise ExportError(
                f"config.model.lora.targets has {target!r}, which in a "
                f"{config['model_type']} is a part of {short(name, 1)}: an adapter of "
                f"PEFT is of the whole layer: {INSTEAD}"
            )
        one = last.count(short(name, 1)) == 1
        out[target] = Module(name, short(name, 1 if one else 2), rule.turn == "same")
    return out


def config_json(base: Base, arch: ArchConfig) -> dict[str, Any]:
    """adapter_config.json."""
    found = modules(base.config, arch).values()
    alpha = arch.lora_alpha
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base.path,
        "revision": base.revision,
        "r": arch.lora_rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": arch.lora_dropout,
        "use_rslora": arch.lora_rslora,
        "target_modules": sorted(module.target for module in found),
        "modules_to_save": ["score"],
        "bias": "none",
        "fan_in_fan_out": any(module.in_out for module in found),
        "inference_mode": True,
    }


def tensors(
    base: Base, arch: ArchConfig, params: Any, dtype: np.dtype
) -> dict[str, np.ndarray]:
    """Of adapter_model.safetensors, by PEFT's names: A is [r, in], B [out, r]."""
    flat = named(params)[0]
    where = pretrained.places(flat, arch)
    prefix = MODEL + hf.family(base.config).prefix
    have = {name: x for name, x in where.items() if "/lora/" in name}
    out = {}
    for target, module in modules(base.config, arch).items():
        for name, place in have.items():
            _, i, _, kernel, _, half = name.split("/")
            if kernel == target:
                theirs = f"{prefix}{module.name.replace('{i}', i)}.lora_{half.upper()}"
                out[f"{theirs}.weight"] = pretrained.part(flat, place).T
    out[HEAD] = flat["head"][None]
    return {
        name: np.ascontiguousarray(np.asarray(x).astype(dtype))
        for name, x in out.items()
    }


def write(scorer: Scorer, base: Base, params: Any, folder: str, dtype: str) -> str:
    """Weights and their config into a folder that is there; gives the model card."""
    config = config_json(base, scorer.arch)
    files.write_json(os.path.join(folder, CONFIG), config)
    path = os.path.join(folder, WEIGHTS)
    arrays = tensors(base, scorer.arch, params, files.DTYPES[dtype])
    save_file(arrays, path, {"format": "pt"})
    os.chmod(path, 0o644)  # save_file leaves it to its owner alone
    return card.card(scorer, base.config["model_type"], dtype, base.path)
