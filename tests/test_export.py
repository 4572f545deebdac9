"""Exported folders: what is in them, that it is the model, and what is refused."""

import dataclasses
import http.server
import json
import pathlib
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
import transformers
from tiny import NO_EVAL, train

import rm_jax as package
from rm_jax import models, pretrained
from rm_jax.data.schema import record_from_dict
from rm_jax.export import card, export
from rm_jax.export.files import ExportError
from rm_jax.export.peers import VerifyError, verify
from rm_jax.export.texts import CONVERSATIONS
from rm_jax.manifest import named
from rm_jax.models import hf, lora
from rm_jax.models.arch import ArchConfig
from rm_jax.models.hf_out import NotExportable
from rm_jax.serve.scorer import Scorer
from rm_jax.weights.source import open_source

pytestmark = pytest.mark.usefixtures("one_device")
SHORT = NO_EVAL | {"train__duration": "2 steps", "model__n_layers": 3}
KINDS = {
    "plain": {"model__windows": (16,)},
    "lora": {"model__lora__rank": 2, "model__lora__alpha": 4.0},
    "members": {"members__count": 2},
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def exported(kind, make, tmp_path_factory):
    """A run, and the folders it was exported to."""
    folder = tmp_path_factory.mktemp(kind)
    train(make(**SHORT, **KINDS[kind]), folder / "run")
    return folder / "run", export(str(folder / "run"), str(folder / "out"))


def back(folder):
    """Arch and arrays of a folder, head and all."""
    source = open_source(f"hf:{folder}")
    arch = ArchConfig(**hf.arch_fields(source.config) | {"lm_head": "none"})
    home = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    init, _ = models.functions(arch)
    like = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=home)
        for path, x in named(jax.eval_shape(init, jax.random.key(0)))[0].items()
    }
    head = pretrained.head_of(source, arch.d_model)
    assert head.name == "linear"
    return pretrained.load(source, arch, like) | head.params


def test_what_comes_back_is_the_model_bit_by_bit(kind, exported):
    run, folders = exported
    model = package.load(str(run))
    for i, folder in enumerate(folders):
        params = model.params
        if model.members:
            params = jax.tree.map(lambda x, i=i: x[i], params)
        if model.arch.lora_rank:
            params, _ = lora.merge(params, model.arch)
        want, got = named(params)[0], back(folder)
        assert want.keys() == got.keys()
        for path in want:
            np.testing.assert_array_equal(want[path], got[path], err_msg=path)
    assert len(folders) == (2 if kind == "members" else 1)


def test_both_dialects_and_what_the_others_ask_for(kind, exported):
    run, folders = exported
    config = json.loads(pathlib.Path(folders[0], "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert config["id2label"] == {"0": "REWARD"} and config["num_labels"] == 1
    assert config["problem_type"] == "regression"
    assert config["pad_token_id"] != config["eos_token_id"]
    name = "Mistral" if kind == "plain" else "Llama"
    assert config["architectures"] == [f"{name}ForSequenceClassification"]
    words = pathlib.Path(folders[0], "README.md").read_text("utf-8")
    assert "transformers 4.51 and 5 score it so." in words
    tokens = json.loads(pathlib.Path(folders[0], "tokenizer_config.json").read_text())
    assert tokens["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokens["model_input_names"] == ["input_ids", "attention_mask"]
    golden = pathlib.Path(folders[0], "golden.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in golden.splitlines()]
    assert len(rows) == 32 and len({row["score"] for row in rows}) > 16
    if kind == "members":
        found = json.loads((run.parent / "out" / "reducer.json").read_text())
        assert found == {"reducer": "mean", "members": ["member_0", "member_1"]}
        assert folders == [str(run.parent / "out" / f"member_{i}") for i in (0, 1)]


@pytest.mark.parity
def test_transformers_scores_the_same(exported):
    for folder in exported[1]:
        done = subprocess.run(
            [sys.executable, f"{folder}/verify.py"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "32 texts, scores differ by at most" in done.stdout
        found = verify(folder, "hf")
        assert found.ok and found.peer.startswith("transformers "), found


class Server(http.server.BaseHTTPRequestHandler):
    """Answers as vLLM's /v1/models and /classify, with scores that it is given."""

    scores: dict

    def do_GET(self):
        self.answer({"data": [{"id": "rm"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == "rm" and body["use_activation"] is False
        rows = [
            {"index": i, "probs": [self.scores[tuple(ids)]]}
            for i, ids in enumerate(body["input"])
        ]
        self.answer({"data": rows[::-1]})

    def answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        """Says nothing."""


def test_a_server_is_asked_for_raw_scores(make, rm_jax, tmp_path):
    train(make(**SHORT), tmp_path / "run")
    folder = export(str(tmp_path / "run"), str(tmp_path / "out"))[0]
    golden = pathlib.Path(folder, "golden.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in golden]
    Server.scores = {tuple(row["input_ids"]): row["score"] for row in rows}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        code, said, err = rm_jax("verify", folder, "--peer", url)
        assert code == 0 and "32 texts, scores differ by at most 0.00e+00" in said, err
        Server.scores[tuple(rows[3]["input_ids"])] += 0.01
        code, said, _ = rm_jax("verify", folder, "--peer", url)
        assert code == 1 and "at most 1.00e-02 (allowed 0.0001)" in said
        Server.scores[tuple(rows[3]["input_ids"])] = float("nan")
        assert rm_jax("verify", folder, "--peer", url)[0] == 1
    finally:
        server.shutdown()
        server.server_close()
    code, _, err = rm_jax("verify", folder, "--peer", url)
    assert code == 1 and "is a server there?" in err
    code, _, err = rm_jax("verify", folder, "--peer", "tgi")
    assert code == 1 and "known: hf, vllm, or a URL" in err
    code, _, err = rm_jax("verify", tmp_path / "run", "--peer", url)
    assert code == 1 and "no golden.jsonl" in err


ONE = {"input_ids": [5], "score": 0.5}


def of_two(folder):
    """A folder of two golden rows, as far as `verify` reads it."""
    folder.mkdir()
    (folder / "config.json").write_text('{"dtype": "float32"}')
    rows = [json.dumps(ONE | {"input_ids": [i]}) + "\n" for i in (5, 6)]
    (folder / "golden.jsonl").write_text("".join(rows))
    return folder


@pytest.mark.parametrize(
    ("models", "rows", "why"),
    [
        ([], None, r"v1/models: names no model \(\[\]\)"),
        ({"data": []}, None, "names no model"),
        ({"data": [{}]}, None, "names no model"),
        (None, None, "classify: want data with an index"),
        (None, [{"index": 0, "probs": [1]}], "1 scores for 2 texts"),
        (None, [{"index": 0, "probs": [1]}] * 2, "each text, got"),
        (None, [{"index": 0, "probs": [1, 2]}], "probs of one number"),
        (None, [{"index": 0, "probs": [None]}], "each text, got"),
        (None, [{"index": 0, "probs": ["x"]}], "each text, got"),
        (None, [{"index": 0}], "each text, got"),
        (None, [3], "each text, got"),
    ],
)
def test_an_answer_that_is_none_is_shown(monkeypatch, tmp_path, models, rows, why):
    names = {"data": [{"id": "rm"}]} if models is None else models
    answer = lambda url, body: names if body is None else {"data": rows}
    monkeypatch.setattr("rm_jax.export.peers._ask", answer)
    with pytest.raises(VerifyError, match=why):
        verify(str(of_two(tmp_path / "out")), "http://here")


@pytest.mark.parametrize("url", ["http://no such host", "http://[::bad"])
def test_a_url_that_is_none_is_named(tmp_path, url):
    with pytest.raises(VerifyError, match="is a server there"):
        verify(str(of_two(tmp_path / "out")), url)


@pytest.mark.parametrize(
    "line",
    [
        "", "junk", "[]", "{}", json.dumps({"input_ids": [5]}),
        json.dumps(ONE | {"score": float("nan")}), json.dumps(ONE | {"score": "0.5"}),
        json.dumps(ONE | {"score": None}), json.dumps(ONE | {"input_ids": []}),
        json.dumps(ONE | {"input_ids": "ab"}),
    ],
)  # fmt: skip
def test_a_golden_row_that_is_none_is_named(tmp_path, line):
    folder = of_two(tmp_path / "out")
    with open(folder / "golden.jsonl", "a") as file:
        file.write(line + "\n" + json.dumps(ONE) + "\n")
    with pytest.raises(VerifyError, match=r"golden\.jsonl line 3: want an object"):
        verify(str(folder), "http://here")


def test_other_things_of_a_folder_are_named(tmp_path):
    folder = of_two(tmp_path / "out")
    for value in (float("nan"), -1.0, float("inf")):
        with pytest.raises(VerifyError, match="--atol .*: want a number, 0 or more"):
            verify(str(folder), "hf", value)
    for text in ("[]", "{}", '{"dtype": "int8"}', '{"dtype": []}'):
        (folder / "config.json").write_text(text)
        with pytest.raises(VerifyError, match=r"config\.json: dtype = .*: known: "):
            verify(str(folder), "hf")


@pytest.mark.parametrize("eos", ["template", "append"])
def test_the_template_gives_what_the_contract_adds(make, tmp_path, eos):
    """A BOS and an EOS that the chat template of the run has not."""
    path = tmp_path / "plain.jinja"
    path.write_text(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    changes = {"contract__template": str(path), "contract__eos": eos}
    train(make(**SHORT, **changes), tmp_path / "run")
    folder = export(str(tmp_path / "run"), str(tmp_path / "out"))[0]
    own = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    golden = pathlib.Path(folder, "golden.jsonl").read_text("utf-8").splitlines()
    for (prompt, response), line in zip(CONVERSATIONS, golden, strict=True):
        chat = [{"role": "user", "content": prompt}]
        chat += [{"role": "assistant", "content": response}]
        ids = own.apply_chat_template(chat, tokenize=True, return_dict=False)
        assert ids == json.loads(line)["input_ids"]
        assert ids[0] == own.bos_token_id
        assert (ids[-1] == own.eos_token_id) == (eos == "append")


def test_golden_scores_are_those_of_float32(make, tmp_path):
    """Of a run that computes in bfloat16, too."""
    train(make(**SHORT, model__dtype="bfloat16"), tmp_path / "run")
    folder = export(str(tmp_path / "run"), str(tmp_path / "out"))[0]
    golden = pathlib.Path(folder, "golden.jsonl").read_text("utf-8").splitlines()
    got = [json.loads(line)["score"] for line in golden]
    records = [
        record_from_dict({"prompt": p, "responses": [r]}, "x") for p, r in CONVERSATIONS
    ]
    exact = Scorer(str(tmp_path / "run"), dtype="float32").score_records(records)
    rough = package.load(str(tmp_path / "run")).score_records(records)
    np.testing.assert_allclose(got, exact[:, 0], rtol=1e-5, atol=1e-6)
    assert np.abs(got - rough[:, 0]).max() > 1e-4


def test_shards_and_bfloat16(make, tmp_path):
    train(make(**SHORT), tmp_path / "run")
    whole = export(str(tmp_path / "run"), str(tmp_path / "one"))[0]
    parts = export(str(tmp_path / "run"), str(tmp_path / "many"), shard=4000)[0]
    assert len(list((tmp_path / "many").glob("model-*-of-*.safetensors"))) > 2
    want, got = back(whole), back(parts)
    assert all(np.array_equal(want[path], got[path]) for path in want)
    half = export(str(tmp_path / "run"), str(tmp_path / "half"), "bfloat16")[0]
    got = back(half)
    for path, x in want.items():
        np.testing.assert_allclose(got[path], x, rtol=2**-8)
    with pytest.raises(FileExistsError, match="choose a new folder"):
        export(str(tmp_path / "run"), half)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"contract__pooling": "mean"}, "pooling = 'mean': classifiers"),
        ({"model__head__name": "mlp"}, "head.name = 'mlp'"),
        ({"model__windows": (8, 0)}, "no LlamaForSeq.* has windows"),
    ],
)
def test_what_a_classifier_cannot_hold(make, tmp_path, changes, why):
    train(make(**SHORT, **changes), tmp_path / "run")
    with pytest.raises((ExportError, NotExportable), match=why):
        export(str(tmp_path / "run"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_card_says_which_transformers_read_the_folder():
    """And how 4.51 is told to compute what it drops by itself."""
    arch = ArchConfig(16, 8, 2, 2, 1, 4, 16)
    assert card._whole(arch)[0] == "transformers 4.51 and 5 score it so."
    olmo2 = dataclasses.replace(arch, norm_at="outputs", qk_norm="all")
    assert card._whole(olmo2)[0].startswith("transformers 5 only: ")
    capped = dataclasses.replace(arch, attention_cap=50.0)
    assert '    attn_implementation="eager",' in card._adapter("base", capped)
    assert '    attn_implementation="eager",' not in card._adapter("base", arch)


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("hh:/home/me/data/x.jsonl.gz#test", "hh:x.jsonl.gz#test"),
        ("gguf:./models/b.gguf", "gguf:b.gguf"),
        ("hf:Qwen/Qwen3-0.6B@abc", "hf:Qwen/Qwen3-0.6B@abc"),
        ("hh:Anthropic/hh-rlhf", "hh:Anthropic/hh-rlhf"),
        ({"a": {"spec": "hh:~/x/y.jsonl"}}, "{'a': {'spec': 'hh:y.jsonl'}}"),
        ("world:", "world:"),
    ],
)
def test_a_card_has_no_paths_of_a_machine(spec, shown):
    assert card._public(spec) == shown


def test_a_card_says_the_biases_that_were_found(make, tmp_path):
    changes = {k: v for k, v in SHORT.items() if k not in NO_EVAL}
    train(make(**changes, train__keep_best=0), tmp_path / "run")
    (folder,) = export(str(tmp_path / "run"), str(tmp_path / "out"))
    text = pathlib.Path(folder, "README.md").read_text("utf-8")
    found = json.loads((tmp_path / "run" / "evals.json").read_text())["sets"]["valid"]
    assert f"by {found['score_length_corr']:+.2f} within a prompt" in text
    assert f"{found['shorter_chosen_accuracy']:.3f} where they prefer the short" in text
    assert "Not measured" not in text and str(tmp_path) not in text
    train(make(**SHORT), tmp_path / "blind")
    (folder,) = export(str(tmp_path / "blind"), str(tmp_path / "blind-out"))
    text = pathlib.Path(folder, "README.md").read_text("utf-8")
    assert "Not measured: the run was not evaluated" in text and "ALARM" not in text
