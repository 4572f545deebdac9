"""Built-in tokenizers by hand, folders, errors, and what the sha256 depends on."""

import subprocess
import sys

import pytest

from rm_jax.data.tokenizers import (
    SPECIALS,
    TokenizerError,
    build_tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenizer_commit,
    tokenizer_sha,
    train_bpe,
)

TEXTS = [
    "the cat sat on the mat and the dog sat on the cat",
    "Answer: it's the 3rd one, there.\n\nThe other is not.",
] * 3
CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "the cat?"},
]


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def built():
    return {
        "byte": build_tokenizer("byte"),
        "word": build_tokenizer("word", words=["cat", "the", "?", "be"]),
        "bpe:280": build_tokenizer("bpe:280", texts=TEXTS),
    }


def test_specials_come_first_and_pad_is_not_eos():
    for tokenizer in built().values():
        assert tokenizer.convert_tokens_to_ids(list(SPECIALS)) == list(range(8))
        assert tokenizer.pad_token_id == 0
        assert tokenizer.eos_token == "<|end|>"
        assert set(tokenizer.all_special_tokens) == set(SPECIALS)


def test_byte_ids_by_hand():
    tokenizer = build_tokenizer("byte")
    assert len(tokenizer) == 264
    # printable ASCII starts at "!", byte 33, right after the 8 special tokens
    assert ids(tokenizer, "!a~") == [8, 8 + ord("a") - 33, 8 + 126 - 33]
    text = "naïve \t\n  🙂\0"
    assert len(ids(tokenizer, text)) == len(text.encode())
    assert tokenizer.decode(ids(tokenizer, text)) == text


def test_every_byte_has_its_own_token():
    tokenizer = build_tokenizer("byte")
    found = {i for c in range(0x800) for i in ids(tokenizer, chr(c))}
    # bytes C0, C1 and E0 to FF begin no two-byte character
    assert len(found) == 256 - 2 - 32


def test_word_ids_by_hand():
    tokenizer = build_tokenizer("word", words=["cat", "the", "?", "cat", "naïve"])
    assert ids(tokenizer, "the cat? \n naïve") == [9, 8, 10, 11]
    assert ids(tokenizer, "The cats") == [7, 7]  # case and form count
    assert ids(tokenizer, "<unk>") == [7]


@pytest.mark.parametrize("word", ["don't", "two words", "", "<unk>"])
def test_word_that_no_text_gives_is_refused(word):
    with pytest.raises(TokenizerError, match="not one word"):
        build_tokenizer("word", words=["fine", word])


def test_bpe_has_the_size_asked_for_and_is_repeatable():
    a, b = train_bpe(TEXTS, 280), train_bpe(iter(TEXTS), 280)
    assert len(a) == 280
    assert tokenizer_sha(a) == tokenizer_sha(b)
    assert ids(a, "the") == ids(b, "the")
    assert len(ids(a, "the cat sat")) < 11
    assert a.decode(ids(a, TEXTS[1])) == TEXTS[1]


def test_bpe_refuses_sizes_it_cannot_give():
    with pytest.raises(TokenizerError, match="at least 264"):
        train_bpe(TEXTS, 263)
    for size in (2**24 + 1, 10**14):  # the Rust library would end the process
        with pytest.raises(TokenizerError, match=f"of {size}: .* at most 16777216"):
            build_tokenizer(f"bpe:{size}", texts=TEXTS)
    with pytest.raises(TokenizerError, match="give only 264 tokens of 300"):
        train_bpe(["a"], 300)
    assert len(train_bpe(["a"], 264)) == 264


def test_builtin_template():
    tokenizer = build_tokenizer("byte")
    text = tokenizer.apply_chat_template(
        CHAT, tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|bos|><|system|>be brief<|end|><|user|>the cat?<|end|><|assistant|>"
    )


def test_save_and_load_give_the_same_tokens(tmp_path):
    for spec, tokenizer in built().items():
        folder = tmp_path / spec.replace(":", "-")
        save_tokenizer(tokenizer, folder)
        for again in (load_tokenizer(folder), build_tokenizer(str(folder))):
            assert tokenizer_sha(again) == tokenizer_sha(tokenizer)
            assert again.special_tokens_map == tokenizer.special_tokens_map
            assert again.get_added_vocab() == tokenizer.get_added_vocab()
            both = [t.apply_chat_template(CHAT) for t in (again, tokenizer)]
            assert both[0]["input_ids"] == both[1]["input_ids"]


def test_sha_is_of_the_content():
    shas = {name: tokenizer_sha(t) for name, t in built().items()}
    assert len(set(shas.values())) == 3
    tokenizer = build_tokenizer("byte")
    tokenizer(["a", "bb"], padding=True, truncation=True, max_length=1)
    tokenizer.backend_tokenizer.enable_truncation(5)
    assert tokenizer_sha(tokenizer) == shas["byte"]
    tokenizer.chat_template += " "
    assert tokenizer_sha(tokenizer) != shas["byte"]
    tokenizer = build_tokenizer("byte")
    tokenizer.add_tokens(["<new>"])
    assert tokenizer_sha(tokenizer) != shas["byte"]


@pytest.mark.parametrize(
    ("spec", "say"),
    [
        ("word", "list of words"),
        ("bpe:280", "needs texts"),
        ("bpe:many", "bpe:8192"),
        ("bpe:" + "9" * 31, "bpe:8192"),
        ("./no/such/folder", 'no such folder; known: "byte"'),
        ("bytes", "does not load"),
        ("owner/name@0123abc", "offline, give a local folder"),
    ],
)
def test_specs_that_cannot_be_built(spec, say):
    with pytest.raises(TokenizerError, match=say) as error:
        build_tokenizer(spec)
    assert spec in str(error.value)
    assert "\n" not in str(error.value)


def test_folder_without_a_tokenizer(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        TokenizerError, match=r"does not load.*tokenizer.json: .*no such"
    ):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="no tokenizer folder"):
        load_tokenizer(tmp_path / "missing")


@pytest.mark.parametrize(
    ("name", "text", "say"),
    [
        ("tokenizer.json", "[]", r"tokenizer.json: want an object, got \[\]"),
        ("tokenizer.json", "3", "tokenizer.json: want an object, got 3"),
        ("tokenizer.json", '{"a"', "tokenizer.json: not JSON: .*line 1"),
        ("tokenizer.json", "\udcff", "tokenizer.json: not UTF-8"),
        ("tokenizer.json", "{}", "KeyError"),
        ("tokenizer.json", '{"model": 3, "added_tokens": []}', "untagged enum"),
        ("tokenizer_config.json", "[]", r"tokenizer_config.json: want an object"),
        ("tokenizer_config.json", '{"eos_token": 3}', "eos_token"),
    ],
)
def test_a_damaged_file_of_a_folder_is_named(tmp_path, name, text, say):
    save_tokenizer(build_tokenizer("byte"), tmp_path)
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(TokenizerError, match=say) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=f"{folder}: cannot make the folder"):
            save_tokenizer(build_tokenizer("byte"), folder)


def test_importing_the_data_layer_does_not_import_transformers():
    code = (
        "import sys, rm_jax.data.contract, rm_jax.data.tokenizers\n"
        "assert not {'transformers', 'tokenizers', 'jinja2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "spec", ["owner/name@main", "owner/name", f"owner/name@{'b' * 40}"]
)
def test_a_tokenizer_of_the_hub_is_loaded_at_one_commit(monkeypatch, tmp_path, spec):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    transformers = pytest.importorskip("transformers")
    commits = {"main": "a" * 40, None: "c" * 40}
    loaded = []

    def resolve(name, *, revision):
        commit = commits.get(revision, revision)
        return huggingface_hub.ResolvedRevision(commit, revision, name)

    def load(name, *, revision, **options):
        loaded.append((name, revision))
        return build_tokenizer("byte")

    monkeypatch.setattr(huggingface_hub, "resolve_revision", resolve)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", load)
    tokenizer = build_tokenizer(spec)
    _, _, revision = spec.partition("@")
    want = commits.get(revision or None, revision)
    assert loaded == [("owner/name", want)] and tokenizer_commit(tokenizer) == want
    assert tokenizer_sha(tokenizer) == tokenizer_sha(build_tokenizer("byte"))


def test_offline_a_branch_is_the_commit_that_the_cache_has(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repo, commit = tmp_path / "models--owner--name", "a" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    save_tokenizer(build_tokenizer("byte"), repo / "snapshots" / commit)
    (repo / "snapshots" / commit / "config.json").write_text('{"model_type": "llama"}')
    assert tokenizer_commit(build_tokenizer("owner/name@main")) == commit
    assert tokenizer_commit(build_tokenizer(f"owner/name@{commit}")) == commit
    with pytest.raises(TokenizerError, match="owner/name@v1.*Cannot resolve revision"):
        build_tokenizer("owner/name@v1")


def test_a_tokenizer_that_is_not_of_the_hub_has_no_commit(tmp_path):
    tokenizer = build_tokenizer("byte")
    save_tokenizer(tokenizer, tmp_path)
    assert (
        tokenizer_commit(tokenizer) == tokenizer_commit(load_tokenizer(tmp_path)) == ""
    )
