"""run.json: sessions that tell who ran what, and a checkout that can be made again."""

import json
import os
import pathlib
import shutil
import subprocess

import jax
import pytest

from rm_jax import provenance, schemas, store


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout of a package of two modules, which provenance takes for ours."""
    here = tmp_path / "checkout" / "rm_jax"
    (here / "data").mkdir(parents=True)
    (here / "provenance.py").write_text("a = 1\nb = 2\n")
    (here / "data" / "pack.py").write_text("c = 3\n")
    (here.parent / "README.md").write_text("read me\n")
    (here.parent / ".gitignore").write_text("ignored.py\n")
    monkeypatch.setattr(provenance, "HERE", here)
    for key in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # of a hook around us
        monkeypatch.delenv(key, raising=False)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    run = lambda *words: (
        subprocess.run(
            [*git, *words], cwd=here.parent, check=True, capture_output=True, text=True
        ).stdout
    )
    run("init", "-q")
    run("add", ".")
    run("commit", "-qm", "first")
    return here, run


def test_a_clean_checkout(checkout):
    _, run = checkout
    found = provenance.code()
    assert found["commit"] == run("rev-parse", "HEAD").strip()
    assert found["dirty_diff"] == "" and len(found["sha256"]) == 64


def test_commit_and_diff_make_the_code_again(checkout, tmp_path):
    here, run = checkout
    (here / "provenance.py").write_text("a = 1\nb = 'é'\n")
    (here / "new file.py").write_text("d = 4\n")
    (here / "data" / "more.py").write_text("e = 5\n")
    (here / "ignored.py").write_text("f = 6\n")
    (here.parent / "configs").mkdir()
    (here.parent / "configs" / "mine.py").write_text("g = 7\n")
    (here.parent / "thesis.txt").write_text("not of the code\n")
    (here.parent / "README.md").unlink()
    found = provenance.code()
    again = tmp_path / "again"
    run("clone", "-q", ".", str(again))
    subprocess.run(["git", "checkout", "-q", found["commit"]], cwd=again, check=True)
    subprocess.run(
        ["git", "apply", "-"], cwd=again, check=True, input=found["dirty_diff"].encode()
    )
    names = lambda top: {
        str(p.relative_to(top)): p.read_text()
        for p in pathlib.Path(top).rglob("*.*")
        if p.is_file() and ".git/" not in str(p)
    }
    want = names(here.parent)
    del want["thesis.txt"], want["rm_jax/ignored.py"]
    assert names(again) == want


def test_the_diff_is_a_patch_whatever_the_users_git_config_says(checkout, tmp_path):
    here, run = checkout
    (here / "table.bin").write_bytes(bytes(range(256)))
    run("add", ".")
    run("commit", "-qm", "binary")
    (here / "table.bin").write_bytes(bytes(range(255, -1, -1)))
    (here.parent / "experiments").mkdir()
    (here.parent / "experiments" / "mine.py").write_text("h = 8\n")
    for key, value in [("color.diff", "always"), ("diff.external", "true"),
                       ("diff.noprefix", "true")]:  # fmt: skip
        run("config", key, value)
    found = provenance.code()
    again = tmp_path / "again"
    run("clone", "-q", ".", str(again))
    subprocess.run(
        ["git", "apply", "-"], cwd=again, check=True, input=found["dirty_diff"].encode()
    )
    changed = (again / "rm_jax/table.bin").read_bytes()
    assert changed == bytes(range(255, -1, -1))
    assert (again / "experiments/mine.py").read_text() == "h = 8\n"


def test_a_package_in_somebody_elses_checkout_is_not_of_it(checkout):
    here, run = checkout
    run("rm", "-rq", "--cached", "rm_jax")
    run("commit", "-qm", "a virtual environment is no part of it")
    assert provenance.code() == {
        "sha256": provenance.package_sha256(),
        "commit": "",
        "dirty_diff": "",
    }


def test_no_checkout_at_all(checkout, monkeypatch):
    here, _ = checkout
    shutil.rmtree(here.parent / ".git")
    for path in (os.environ["PATH"], ""):  # with git and without
        monkeypatch.setenv("PATH", path)
        assert provenance.code()["commit"] == provenance.code()["dirty_diff"] == ""


def test_a_git_that_cannot_say_leaves_the_code_unknown(checkout, monkeypatch):
    here, _ = checkout
    sha, real = provenance.package_sha256(), subprocess.run
    want = lambda why: {"sha256": sha, "commit": why, "dirty_diff": why}

    def slow(command, **options):
        if "HEAD" in command and "diff" in command:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return real(command, **options)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", slow)
        found = provenance.code()
        assert found == want("unknown: git diff: no answer in 10 s")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        why = "unknown: git ls-files: No such file or directory"
        assert provenance.code() == want(why)
    (here.parent / ".git" / "index").write_bytes(b"damaged")
    found = provenance.code()
    assert found == want(found["commit"])
    assert found["commit"].startswith("unknown: git ls-files: exit code 128: ")


def test_a_diff_says_that_code_is_unknown(root, checkout, tmp_path, monkeypatch):
    from rm_jax.report.diff import diff, text_lines

    monkeypatch.setattr(provenance, "GIT_WITHIN", 0)
    for name in ("a", "b"):
        shutil.copytree(root / "tests" / "golden" / "run", tmp_path / name)
        path = str(tmp_path / name / "run.json")
        info = store.read_json(path)
        for session in info["sessions"]:
            session["code"] = provenance.code()
        store.write_sealed(path, info)
    found = diff(str(tmp_path / "a"), str(tmp_path / "b"))
    assert list(found.sections["code"]) == ["code.commit", "code.dirty_diff"]
    why = "'unknown: git ls-files: no answer in 0 s'"
    assert f"  code.dirty_diff: {why} -> {why}" in list(text_lines(found))
    info["sessions"][0]["code"] = dict.fromkeys(info["sessions"][0]["code"], "a")
    store.write_sealed(path, info)
    found = diff(str(tmp_path / "b"), str(tmp_path / "b"))
    assert not found.same and found.sections["code"]


def test_the_sha_of_the_code_is_that_of_every_module(checkout):
    here, _ = checkout
    first = provenance.package_sha256()
    for name in (
        "_configs",
        "_experiments",
        "__pycache__",
    ):  # a wheel has the first two
        (here / name).mkdir()
    (here / "_configs" / "base.py").write_text("1")
    (here / "notes.txt").write_text("1")
    assert provenance.package_sha256() == first
    seen = {first}
    (here / "data" / "pack.py").write_text("c = 4\n")
    seen.add(provenance.package_sha256())
    (here / "data" / "pack.py").rename(here / "data" / "other.py")
    seen.add(provenance.package_sha256())
    (here / "__init__.py").write_text("")
    seen.add(provenance.package_sha256())
    assert len(seen) == 4


def test_this_process_is_described_whole():
    found = provenance.this_process()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["jax"] == jax.__version__
    assert "libtpu" not in found["versions"] or found["versions"]["libtpu"]
    assert found["devices"]["count"] == len(jax.devices()) == 8
    assert found["environment"]["XLA_FLAGS"] == os.environ["XLA_FLAGS"]
    assert found["folder"] == os.getcwd()


def test_sessions(tmp_path, monkeypatch):
    path = str(tmp_path / "run.json")
    machine = {"versions": {"jax": "1"}, "argv": ["rm-jax"]}
    monkeypatch.setattr(provenance, "this_process", lambda: dict(machine))
    store.write_json(path, schemas.stamped("run.json", {"sessions": [], "steps": 9}))
    begin = lambda step: provenance.add_session(path, step, {"mesh": {"data": 1}})
    begin(0)
    begin(4)
    machine["versions"] = {"jax": "2"}
    begin(6)
    machine["versions"] = {"jax": "1"}
    begin(8)
    info = store.read_json(path)
    assert info["steps"] == 9
    told = [
        (s["versions"]["jax"], s["mesh"], [start["step"] for start in s["starts"]])
        for s in info["sessions"]
    ]
    mesh = {"data": 1}
    assert told == [("1", mesh, [0, 4]), ("2", mesh, [6]), ("1", mesh, [8])]
    times = [start["time"] for s in info["sessions"] for start in s["starts"]]
    assert times == sorted(times) and all(t.endswith("+00:00") for t in times)


def test_run_json_says_what_the_data_was(root):
    info = store.read_json(str(root / "tests" / "golden" / "run" / "run.json"))
    rows = root / "tests" / "golden" / "rows.jsonl"
    for name in ("train", "valid"):
        assert info["data"][name]["source"]["sha256"] == store.sha256_file(str(rows))
    config = root / "tests" / "golden" / "run" / "config.json"
    assert info["config_sha256"] == store.sha256_file(str(config))


def test_other_knobs_of_today_do_not_refuse_an_older_run(root, tmp_path):
    from rm_jax import config, rundir

    shutil.copytree(root / "tests" / "golden" / "run", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    values = json.loads(path.read_text())
    del values["train"]["spike_sigma"], values["batch"]["prefetch"], values["seal"]
    path.write_text(json.dumps(values))
    assert rundir.claim(str(tmp_path / "run"), config.validate(config.load(str(path))))


def test_a_run_json_of_nothing_is_named(tmp_path):
    from rm_jax import rundir

    path = tmp_path / "run.json"
    for keys in ((), ("data", "plugins", "sessions")):
        store.write_json(path, schemas.stamped("run.json", dict.fromkeys(keys, {})))
        with pytest.raises(ValueError, match=f"{path} has no .*'contract_sha256'"):
            rundir.run_json(str(tmp_path))
