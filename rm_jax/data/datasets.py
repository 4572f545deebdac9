"""From a config to token sets: sources, audit, tokenizer, contract, cache, in order."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from rm_jax import store
from rm_jax.data import cache, sources
from rm_jax.data.audit import audit
from rm_jax.data.cache import TokenSet
from rm_jax.data.contract import Contract, Encoder, make_contract
from rm_jax.data.schema import Record, response_text
from rm_jax.data.tokenizers import build_tokenizer, load_tokenizer, save_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Say = Callable[[str], None]


class Data(NamedTuple):
    """Everything a run reads.

    Attributes:
      train: training set.
      evals: name -> evaluation set.
      specs: name -> SPEC of each set, "train" among them.
      tokenizer: of the contract.
      contract: how the texts became tokens.
    """

    train: TokenSet
    evals: dict[str, TokenSet]
    specs: dict[str, str]
    tokenizer: "PreTrainedTokenizerFast"
    contract: Contract


def specs_of(data: Mapping[str, Any]) -> dict[str, str]:
    """name -> SPEC of the training set ("train") and of each evaluation set.

    An evaluation SPEC "#valid" is a split of the training source. Where any evaluation
    set is a split of that source, by "#valid" or by its whole SPEC, training without a
    split means "#train": no held-out prompt is trained on.

    Raises:
      ValueError: an evaluation set called "train", or "#split" beside a training SPEC
        that names a split itself.
    """
    train, evals = data["train"], dict(data["eval"].items())
    if "train" in evals:
        raise ValueError("config.data.eval has a set called 'train': rename it")
    parsed = sources.parse_spec(train)
    own = {n: s for n, s in evals.items() if s.startswith("#")}
    if own and parsed.split not in ("", "train"):
        raise ValueError(
            f"config.data.train = {train!r} names a split, so config.data.eval = "
            f"{own} cannot be splits of it: give them a SPEC of their own"
        )
    evals |= {n: str(parsed._replace(split=s[1:])) for n, s in own.items()}
    found = [sources.parse_spec(spec) for spec in evals.values()]
    held = [f for f in found if f.split not in ("", "train")]
    if any(_place(f) == _place(parsed) for f in held):
        train = str(parsed._replace(split=parsed.split or "train"))
    return {"train": train, **evals}


def _place(spec: sources.Spec) -> str:
    """Where the rows of a SPEC lie, whatever format or revision reads them."""
    path = spec.path or spec.format  # `world:` has no path
    return os.path.realpath(path) if os.path.exists(path) else path


def open_source(spec: str, data: Mapping[str, Any], limit: int = 0) -> sources.Source:
    """`sources.open_source` with the knobs of a config's data section.

    A column map is for the formats that take one; other sets beside them need none.
    """
    mapped = sources.parse_spec(spec).format in ("columns", "hf")
    return sources.open_source(
        spec,
        columns=dict(data["columns"].items()) if mapped else None,
        world=dict(data["world"].items()),
        on_bad_row=data["on_bad_row"],
        valid_fraction=data["valid_fraction"],
        test_fraction=data["test_fraction"],
        limit=limit,
    )


def cache_root(data: Mapping[str, Any]) -> pathlib.Path:
    """Folder of token caches.

    Raises:
      ValueError: it is a URL.
    """
    if store.is_url(data["cache_dir"]):
        raise ValueError(
            f"config.data.cache_dir = {data['cache_dir']!r}: want a folder of this "
            "machine's disk, because token caches are memory-mapped"
        )
    return pathlib.Path(data["cache_dir"] or "~/.cache/rm_jax/tokens").expanduser()


def open_data(config: Mapping[str, Any], kept_tokenizer: str | None, say: Say) -> Data:
    """Opens every set of a run, building what is not cached.

    Args:
      config: of the run.
      kept_tokenizer: folder of the run's own tokenizer, if it has one already.
      say: prints a line.

    Raises:
      ValueError, FileNotFoundError: what is wrong with a source, a row or the contract.
    """
    data = config["data"]
    specs = specs_of(data)
    if specs["train"] != data["train"]:
        say(f"training on {specs['train']}: what is held out of it is left out")
    opened = {
        name: open_source(spec, data, data["limit"] if name == "train" else 0)
        for name, spec in specs.items()
    }
    if kept_tokenizer is not None:
        tokenizer = load_tokenizer(kept_tokenizer)
    else:
        tokenizer = make_tokenizer(config, opened["train"], say)
    contract = make_contract(config["contract"], tokenizer)
    sets = {
        name: token_set(name, source, data, contract, tokenizer, say)
        for name, source in opened.items()
    }
    train = sets.pop("train")
    return Data(train, sets, specs, tokenizer, contract)


def make_tokenizer(
    config: Mapping[str, Any], train: sources.Source, say: Say
) -> "PreTrainedTokenizerFast":
    """The tokenizer of `config.contract.tokenizer`; a trained one is cached."""
    spec = config["contract"]["tokenizer"]
    if spec == "word" and train.info["path"] == "world":
        from rm_jax.data.world import vocabulary

        return build_tokenizer(spec, words=vocabulary())
    if not spec.startswith("bpe:"):
        return build_tokenizer(spec)
    name = hashlib.sha256(f"{train.fingerprint} {spec}".encode()).hexdigest()[:32]
    folder = cache_root(config["data"]) / "tokenizers" / name
    if not folder.is_dir():
        say(f"training tokenizer {spec} on {train.name}")
        scratch = folder.with_name(f"{name}.{os.getpid()}.tmp")
        save_tokenizer(
            build_tokenizer(spec, texts=texts(train.records())), os.fspath(scratch)
        )
        os.rename(scratch, folder)
    return load_tokenizer(folder)


def texts(records: Iterator[Record]) -> Iterator[str]:
    """Every message of every record: what a tokenizer is trained on."""
    for record in records:
        yield from (m.content for m in record.prompt)
        yield from (response_text(r) for r in record.responses)


def token_set(
    name: str,
    source: sources.Source,
    data: Mapping[str, Any],
    contract: Contract,
    tokenizer: "PreTrainedTokenizerFast",
    say: Say,
) -> TokenSet:
    """The token set of a source; audited, tokenised and cached when it is not yet."""
    policy = dict(data["audit"].items())
    key = cache.key(source.fingerprint, policy, contract.token_sha())
    folder = cache_root(data) / key
    if not (folder / "meta.json").exists():
        say(f"{name}: tokenising {source.name} into {folder}")
        audited = audit(source.records, policy)
        report = dataclasses.asdict(audited.report)
        report["lines"] = audited.report.lines()
        found = cache.build(
            audited.records(), Encoder(contract, tokenizer), folder, report, source.info
        )
    else:
        found = cache.open_cache(folder)
    for line in _summary(name, found):
        say(line)
    return found


def _summary(name: str, data: TokenSet) -> Iterator[str]:
    """What is in a set, and what was dropped or cut to get there."""
    meta = data.meta
    counts, report = meta["counts"], meta["audit"]
    yield (
        f"{name}: {len(data)} examples, {meta['tokens']} tokens, K <= "
        f"{meta['max_responses']}"
    )
    found = {k: n for k, n in report["counts"].items() if n}
    if found:
        yield f"{name}: audit " + ", ".join(
            f"{n} {k} ({report['policy'][k]})" for k, n in found.items()
        )
    cut = {k: n for k, n in counts.items() if n and k.endswith(("cut", "dropped"))}
    if cut or counts.get("unknown_tokens"):
        cut["unknown_tokens"] = counts.get("unknown_tokens", 0)
        yield f"{name}: " + ", ".join(f"{n} {k}" for k, n in cut.items())
    if meta["source"].get("bad_rows"):
        yield f"{name}: {meta['source']['bad_rows']} malformed rows dropped"
