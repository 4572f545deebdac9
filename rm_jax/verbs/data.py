"""Verbs about data: `rm-jax data prepare`, `tokenizer`, `audit`, `presets`."""

import os

from rm_jax import arguments, store


def prepare(words: list[str]) -> None:
    """`rm-jax data prepare`."""
    parser = arguments.parser("data prepare", "Write a source into a TFDS directory.")
    arguments.add_data(parser)
    parser.add_argument(
        "--out", type=arguments.path, required=True, help="folder of TFDS data sets"
    )
    parser.add_argument("--name", default="preferences", help="of the data set")
    parser.add_argument("--splits", default="train,valid,test", help="comma-separated")
    args = parser.parse_args(words)
    from rm_jax.data.sources import prepare

    splits = [s for s in args.splits.split(",") if s]
    if not splits or len(set(splits)) < len(splits):
        raise arguments.UsageError(f"--splits {args.splits!r}: want names, each once")
    print(
        prepare(args.data, args.out, args.name, splits, columns=arguments.columns(args))
    )


def tokenizer(words: list[str]) -> None:
    """`rm-jax data tokenizer`."""
    parser = arguments.parser("data tokenizer", "Train a byte-level BPE on a source.")
    arguments.add_data(parser)
    parser.add_argument(
        "--vocab", type=arguments.count, required=True, help="tokens in all"
    )
    parser.add_argument(
        "--out", type=arguments.path, required=True, help="a new folder"
    )
    args = parser.parse_args(words)
    arguments.check_new("--out", args.out)
    from rm_jax.data.datasets import texts
    from rm_jax.data.sources import open_source
    from rm_jax.data.tokenizers import save_tokenizer, train_bpe

    source = open_source(args.data, columns=arguments.columns(args))
    tokenizer = train_bpe(texts(source.records()), args.vocab)
    if os.path.isdir(args.out):  # empty
        os.rmdir(args.out)
    with store.new_folder(args.out) as folder:
        save_tokenizer(tokenizer, folder)
    print(f"{args.out}: use it with --config.contract.tokenizer={args.out}")


def audit(words: list[str]) -> None:
    """`rm-jax data audit`."""
    parser = arguments.parser("data audit", "Count what should not be trained on.")
    arguments.add_data(parser)
    args = parser.parse_args(words)
    from rm_jax.data.audit import DEFAULT_POLICY, audit
    from rm_jax.data.sources import open_source

    source = open_source(args.data, columns=arguments.columns(args))
    for line in audit(source.records, DEFAULT_POLICY).report.lines():
        print(line)


def presets(words: list[str]) -> None:
    """`rm-jax data presets`."""
    arguments.parser(
        "data presets", "List the data sets that preset:NAME opens."
    ).parse_args(words)
    from rm_jax.data.presets import preset_lines

    for line in preset_lines():
        print(line)
