"""Every causal family as an exported folder: its config, and its scores elsewhere."""

import copy
import dataclasses
import json
import types
from typing import Any, NamedTuple

import backbones
import numpy as np
import pytest
from test_peers import PROGRAMS, peer, program

from rm_jax.export import files
from rm_jax.export import folder as folders
from rm_jax.models import hf, hf_out
from rm_jax.models.arch import ArchConfig

LENGTH = 48  # of a contract; the sequences are not longer
ATOL = 1e-4
# What a tokenizer and a contract say in a config.json.
TOLD = types.SimpleNamespace(
    tokenizer=types.SimpleNamespace(bos_token_id=2, eos_token_id=3),
    contract=types.SimpleNamespace(
        normalisation=types.SimpleNamespace(mean=0.0, std=1.0)
    ),
)


class Case(NamedTuple):
    """What is exported.

    Attributes:
      base: of backbones.CASES: config and weights.
      changes: of its config.
      layers: the lowest that are kept, as `config.model.features` does; 0 is all.
    """

    base: str
    changes: dict[str, Any] = {}
    layers: int = 0

    @property
    def config(self) -> dict[str, Any]:
        """Of transformers' own model."""
        cut = {"num_hidden_layers": self.layers} if self.layers else {}
        # A copy: transformers writes defaults into the rope of its caller.
        return copy.deepcopy(backbones.CASES[self.base] | self.changes | cut)

    @property
    def arch(self) -> ArchConfig:
        """Ours."""
        whole = backbones.CASES[self.base] | self.changes
        arch = ArchConfig(**hf.arch_fields(whole) | {"lm_head": "none"})
        return dataclasses.replace(arch, n_layers=self.layers or arch.n_layers)


CASES = {
    **{
        name: Case(name)
        for name, config in backbones.CASES.items()
        if config["model_type"] not in backbones.ENCODERS
    },
    "qwen2_windows_everywhere": Case("qwen2_windows", {"max_window_layers": 0}),
    "qwen2_windows_cut": Case("qwen2_windows", layers=1),
    "qwen3_windows": Case(
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "gemma2_slides": Case("gemma2", {"layer_types": ["sliding_attention"] * 5}),
    "gemma2_full": Case("gemma2", {"layer_types": ["full_attention"] * 5}),
    "gemma2_cut": Case("gemma2", layers=1),
    "gemma3_cut": Case("gemma3", layers=4),
    "llama_yarn_fraction": Case(
        "llama", {"rope_parameters": backbones.YARN | {"factor": 2.3}}
    ),
    "llama_yarn_bounds": Case(
        "llama",
        {
            "rope_parameters": backbones.YARN
            | {"original_max_position_embeddings": 1024, "truncate": False}
        },
    ),
    "gpt_neox_yarn": Case("gpt_neox", {"rope_parameters": backbones.YARN}),
}


def write(name: str, at) -> str:
    """A folder as `export` writes it, without a tokenizer."""
    case, to = CASES[name], at / name
    to.mkdir()
    about = backbones.golden()[1][case.base]
    whole = backbones.CASES[case.base] | case.changes
    params = backbones.loaded(case.arch, whole, about["tensors"])
    trunk = hf_out.to_config(case.arch, LENGTH)
    config = folders._config(TOLD, trunk, "float32", 0)
    files.write_json(str(to / "config.json"), config)
    kind = files.DTYPES["float32"]
    folders._weights(config, case.arch, params, str(to), kind, folders.SHARD)
    return str(to)


def check(names, python: str, at) -> str:
    """Scores in another program beside transformers' own class; gives its version."""
    rows = backbones.scored()
    ids, out = at / "ids.json", at / "out.json"
    ids.write_text(json.dumps([row.tolist() for row in rows]))
    paths = {name: write(name, at) for name in names}
    program(python, PROGRAMS / "score_ids.py", ids, out, *paths.values())
    found = json.loads(out.read_text())
    apart = {}
    for name, path in paths.items():
        want = backbones.torch_scores(CASES[name].config, rows, left=False)
        assert want.std() > 0.1
        worst = np.abs(np.array(found["scores"][path]) - want).max()
        if not worst <= ATOL:
            apart[name] = float(worst)
    assert not apart
    return found["version"]


ONLY_5 = {
    *("qwen2_windows", "qwen3_windows", "gemma3", "gemma3_cut", "olmo2"),
    *("llama_yarn_fraction", "llama_yarn_bounds", "gemma2_slides", "gemma2_full"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_config_is_read_back_as_the_trunk(name):
    """Of trunks that were cut, too, whose pattern of windows may be longer."""
    arch = CASES[name].arch
    config = json.loads(json.dumps(hf_out.to_config(arch, LENGTH)))
    back = ArchConfig(**hf.arch_fields(config))
    windows = lambda a: [a.window(i) for i in range(a.n_layers)]
    assert windows(back) == windows(arch)
    same = {"windows": arch.windows, "lm_head": arch.lm_head}
    assert dataclasses.replace(back, **same) == arch
    assert hf_out.versions(arch) == ("5" if name in ONLY_5 else "4.51 and 5")


def test_words_without_which_4_51_scores_otherwise():
    config = lambda name: hf_out.to_config(CASES[name].arch, LENGTH)
    assert config("gemma2")["_attn_implementation"] == "eager"
    assert "_attn_implementation" not in config("gemma3")
    assert config("qwen2")["max_position_embeddings"] == 64  # 4 x 16
    assert config("llama_3")["max_position_embeddings"] == LENGTH
    for name in ("qwen2", "qwen3", "qwen2_windows_cut"):
        assert config(name)["sliding_window"] is None
        assert config(name)["use_sliding_window"] is False
    windows = config("qwen2_windows")
    assert windows["use_sliding_window"] is True and windows["max_window_layers"] == 1


@pytest.mark.parity
def test_transformers_5_scores_every_folder_alike(tmp_path):
    assert check(CASES, peer("transformers5"), tmp_path).startswith("5.")


@pytest.mark.slow
def test_transformers_4_scores_what_it_is_said_to_read(tmp_path):
    pytest.importorskip("torch")
    python = peer("transformers4")
    read = [n for n, case in CASES.items() if hf_out.versions(case.arch) != "5"]
    assert check(read, python, tmp_path).startswith("4.51.")
