"""Runs exported as adapters of PEFT: names, shapes, the head, and what is refused."""

import json
import pathlib
import subprocess
import sys

import backbones
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import NO_EVAL, train

import rm_jax as package
from rm_jax.export import adapter, export
from rm_jax.export.files import ExportError
from rm_jax.export.peers import VerifyError, verify
from rm_jax.manifest import named
from rm_jax.models import hf
from rm_jax.models.arch import ArchConfig

pytestmark = pytest.mark.usefixtures("one_device")
SHORT = NO_EVAL | {"train__duration": "2 steps", "optim__learning_rate": 0.1}
LORA = {
    "model__lora__rank": 2,
    "model__lora__alpha": 6.0,
    "model__lora__rslora": True,
    "model__lora__dropout": 0.25,
    "model__lora__targets": ("q|v", "d.*"),
}
LLAMA = {"q": "self_attn.q_proj", "v": "self_attn.v_proj", "down": "mlp.down_proj"}


@pytest.fixture(scope="module")
def base(make, tmp_path_factory):
    """A model of transformers: a plain run, exported whole."""
    folder = tmp_path_factory.mktemp("base")
    train(make(**SHORT, model__n_layers=3), folder / "run")
    return export(str(folder / "run"), str(folder / "out"))[0]


def on_top(base, **changes):
    """Changes that start a run from a folder."""
    own = {"model__arch": "init", "model__init": f"hf:{base}"}
    return SHORT | own | {"contract__tokenizer": "init"} | LORA | changes


@pytest.fixture(scope="module")
def run(base, make, tmp_path_factory):
    """A run with adapters on the base."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train(make(**on_top(base)), folder)
    return folder


@pytest.fixture(scope="module")
def folder(run):
    """The run as an adapter."""
    return export(str(run), str(run.parent / "adapter"), as_adapter=True)[0]


def test_config_is_what_peft_reads(base, folder):
    config = json.loads(pathlib.Path(folder, "adapter_config.json").read_text())
    assert config == {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "revision": None,
        "r": 2,
        "lora_alpha": 6,
        "lora_dropout": 0.25,
        "use_rslora": True,
        "target_modules": ["down_proj", "q_proj", "v_proj"],
        "modules_to_save": ["score"],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    names = {path.name for path in pathlib.Path(folder).iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "README.md",
        "chat_template.jinja", "contract.json", "golden.jsonl", "tokenizer.json",
        "tokenizer_config.json", "verify.py",
    }  # fmt: skip
    card = pathlib.Path(folder, "README.md").read_text("utf-8")
    assert f"base_model: {base}\nlibrary_name: peft\n" in card
    assert f"{base!r}, num_labels=1, pad_token_id=tokenizer.pad_token_id" in card


def test_tensors_are_the_runs_own_by_the_names_of_peft(run, folder):
    path = pathlib.Path(folder, "adapter_model.safetensors")
    got, model = load_file(path), package.load(str(run))
    flat = named(model.params)[0]
    want = {"base_model.model.score.weight": flat["head"][None]}
    for i in range(3):
        at, layer = ("stack_0", i) if i < 2 else ("layer_2", ...)
        for ours, theirs in LLAMA.items():
            part = "mlp" if ours == "down" else "attn"
            own = f"{at}/{part}/{ours}/lora"
            name = f"base_model.model.model.layers.{i}.{theirs}"
            want[f"{name}.lora_A.weight"] = flat[f"{own}/a"][layer].T
            want[f"{name}.lora_B.weight"] = flat[f"{own}/b"][layer].T
    assert got.keys() == want.keys()
    for name, x in want.items():
        np.testing.assert_array_equal(got[name], x, err_msg=name)
    assert got["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].shape == (
        2,
        16,
    )
    assert path.stat().st_mode & 0o777 == 0o644


def test_members_are_a_folder_each(base, make, tmp_path):
    changes = {"members__count": 2, "members__share": "adapters"}
    train(make(**on_top(base, **changes)), tmp_path / "run")
    folders = export(str(tmp_path / "run"), str(tmp_path / "out"), as_adapter=True)
    assert folders == [str(tmp_path / "out" / f"member_{i}") for i in (0, 1)]
    found = json.loads((tmp_path / "out" / "reducer.json").read_text())
    assert found == {"reducer": "mean", "members": ["member_0", "member_1"]}
    params = named(package.load(str(tmp_path / "run")).params)[0]
    for i, one in enumerate(folders):
        got = load_file(f"{one}/adapter_model.safetensors")
        want = params["stack_0/attn/q/lora/a"][i, 1].T
        name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
        np.testing.assert_array_equal(got[name], want)
    golden = [pathlib.Path(one, "golden.jsonl").read_text("utf-8") for one in folders]
    assert golden[0] != golden[1]


def test_what_is_no_adapter_is_refused_in_one_line(base, run, make, rm_jax, tmp_path):
    def refused(checkpoint, *words):
        to = tmp_path / "to"
        flags = ("--checkpoint", checkpoint, "--to", to, "--adapter")
        code, _, err = rm_jax("export", *flags)
        assert code == 1 and not to.exists() and "Traceback" not in err
        last = err.splitlines()[-1]
        assert last.startswith("rm-jax: ") and all(word in last for word in words), err

    refused(pathlib.Path(base).parent / "run", "config.model.lora.rank = 0")
    train(make(**SHORT, **LORA), tmp_path / "scratch")
    refused(tmp_path / "scratch", "config.model.init = 'scratch'", "without --adapter")
    # Another base at the same place: the trunk is no longer the run's.
    path = pathlib.Path(base, "model.safetensors")
    whole = path.read_bytes()
    arrays = load_file(path)
    arrays["model.layers.1.mlp.up_proj.weight"][3, 2] *= 1.5
    try:
        save_file(arrays, path)
        refused(run, "is not the trunk of the run: stack_0/mlp/up/kernel differs")
    finally:
        path.write_bytes(whole)
    config = pathlib.Path(base, "config.json")
    text = config.read_text()
    try:
        config.write_text(text.replace("10000.0", "20000.0"))
        refused(run, "is not the trunk of the run: rope_base differs")
    finally:
        config.write_text(text)


def arch_of(case, *targets):
    config = backbones.CASES[case]
    fields = hf.arch_fields(config)
    return config, ArchConfig(**fields, lora_rank=1, lora_targets=targets)


def test_fused_layers_are_refused_and_conv1d_is_said():
    for case, target, layer in (
        ("gpt_neox", "k", "query_key_value"),
        ("gpt2", "v", "c_attn"),
    ):
        with pytest.raises(ExportError, match=f"has {target!r}.* part of {layer}"):
            adapter.modules(*arch_of(case, "o", target))
    config, arch = arch_of("gpt2", "o", "up", "down")
    base = adapter.Base("x", "abc", config)
    found = adapter.config_json(base, arch)
    assert found["fan_in_fan_out"] and found["revision"] == "abc"
    assert found["target_modules"] == ["attn.c_proj", "c_fc", "mlp.c_proj"]
    base = adapter.Base("x", None, backbones.CASES["gpt_neox"])
    found = adapter.config_json(base, arch)
    assert not found["fan_in_fan_out"]
    assert found["target_modules"] == ["dense", "dense_4h_to_h", "dense_h_to_4h"]


def test_bf16_and_peers(run, tmp_path, rm_jax):
    flags = ("--checkpoint", run, "--to", tmp_path / "half", "--dtype", "bf16")
    code, said, err = rm_jax("export", *flags, "--adapter")
    assert code == 0 and f"{tmp_path}/half/verify.py checks it" in said, err
    got = load_file(tmp_path / "half" / "adapter_model.safetensors")
    assert {str(x.dtype) for x in got.values()} == {"bfloat16"}
    with pytest.raises(VerifyError, match="half: an adapter: vLLM loads whole"):
        verify(str(tmp_path / "half"), "vllm")
    with pytest.raises(ExportError, match="dtype 'f16': known: float32, bfloat16, bf"):
        export(str(run), str(tmp_path / "x"), "f16")


def check(folder):
    """verify.py in a process of its own."""
    return subprocess.run(
        [sys.executable, f"{folder}/verify.py"], capture_output=True, text=True
    )


@pytest.mark.parity
def test_peft_scores_the_same(base, run, folder, tmp_path):
    done = check(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "missing adapter keys" not in done.stderr
    assert "32 texts, scores differ by at most" in done.stdout
    assert verify(folder, "hf").ok
    # The adapters and the head both do something.
    rows = pathlib.Path(folder, "golden.jsonl").read_text("utf-8").splitlines()
    plain = pathlib.Path(base, "golden.jsonl").read_text("utf-8").splitlines()
    apart = [
        abs(json.loads(a)["score"] - json.loads(b)["score"])
        for a, b in zip(rows, plain, strict=True)
    ]
    assert max(apart) > 1e-2
    path = pathlib.Path(folder, "adapter_model.safetensors")
    whole = path.read_bytes()
    try:
        for name in sorted(load_file(path))[::9]:
            save_file({n: x for n, x in load_file(path).items() if n != name}, path)
            done = check(folder)
            assert done.returncode == 1
            assert f"{name}: not " in done.stderr
            path.write_bytes(whole)
    finally:
        path.write_bytes(whole)


@pytest.mark.parity
def test_peft_scores_members_and_gpt2_the_same(base, make, tmp_path):
    changes = {"members__count": 2, "members__share": "adapters"}
    train(make(**on_top(base, **changes)), tmp_path / "run")
    for one in export(str(tmp_path / "run"), str(tmp_path / "out"), as_adapter=True):
        done = check(one)
        assert done.returncode == 0, done.stdout + done.stderr
    gpt2(pathlib.Path(base), tmp_path / "gpt2")
    changes = {"model__lora__targets": ("o", "up", "down")}
    train(make(**on_top(tmp_path / "gpt2", **changes)), tmp_path / "on_gpt2")
    for one in export(
        str(tmp_path / "on_gpt2"), str(tmp_path / "of_gpt2"), as_adapter=True
    ):
        done = check(one)
        assert done.returncode == 0, done.stdout + done.stderr


def gpt2(base, folder):
    """A GPT-2 with the tokenizer of the base."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((base / name).read_bytes())
    vocab = json.loads((base / "config.json").read_text())["vocab_size"]
    config = backbones.CASES["gpt2"] | {"vocab_size": vocab, "n_positions": 128}
    (folder / "config.json").write_text(json.dumps(config))
    about = json.loads(np.load(backbones.GOLDEN)["about"].tobytes())
    shapes = about["gpt2"]["tensors"] | {
        "wte.weight": (vocab, 32),
        "wpe.weight": (128, 32),
    }
    arrays = {name: backbones.weight(name, tuple(s)) for name, s in shapes.items()}
    save_file(arrays, folder / "model.safetensors")
