"""Chat templates: dates, and the templates and tokenizers of open models."""

import dataclasses
import datetime
import functools
import types

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from rm_jax import limits
from rm_jax.config import load, validate
from rm_jax.data.clock import pinned
from rm_jax.data.contract import Encoder, make_contract
from rm_jax.data.schema import Message, Record
from rm_jax.data.templates import TemplateError
from rm_jax.data.terms import ContractError, sha256_text
from rm_jax.data.tokenizers import build_tokenizer
from rm_jax.export.files import _pad

BYTE = build_tokenizer("byte")
CONFIG = {
    "tokenizer": "byte", "template": "tokenizer", "date": "", "bos": "one",
    "eos": "template", "max_length": 40_000, "max_response": 20_000,
    "truncation_side": "left", "over_long": "error", "pooling": "last",
}  # fmt: skip
TURNS = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
DATED = (  # as Llama's later templates do it
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{% endif %}"
    "{{ '<|system|>Today Date: ' + date_string + '<|end|>' }}" + TURNS
)
SELDOM = TURNS.replace(
    "m.content +", "m.content.replace('NOW', strftime_now('%F') if 'NOW' in m.content"
    " else '') +",
)  # fmt: skip
DAY = datetime.date(2024, 7, 26)
CLOCKS = (datetime.datetime(1999, 12, 31, 23, 59), datetime.datetime(2031, 5, 6, 7))
NAMES = ("qwen3", "llama3_1", "smollm2")
NO_GEMMA = pytest.mark.skip(
    "no package has Gemma 2's chat template, only its tokenizer"
)


def with_template(text):
    tokenizer = build_tokenizer("byte")
    tokenizer.chat_template = text
    return tokenizer


def encoder(tokenizer, **changes) -> Encoder:
    return Encoder(make_contract(CONFIG | changes, tokenizer), tokenizer)


def record(prompt, *responses, id="r1") -> Record:
    prompt = [("user", prompt)] if isinstance(prompt, str) else prompt
    made = tuple(
        tuple(Message(*m) for m in ([("assistant", r)] if isinstance(r, str) else r))
        for r in responses
    )
    messages = tuple(Message(*m) for m in prompt)
    return Record(id, "test", messages, made, (None,) * len(made))


def theirs(tokenizer, messages, **kwargs):
    """What transformers makes of a conversation."""
    chat = [{"role": role, "content": content} for role, content in messages]
    return tokenizer.apply_chat_template(chat, return_dict=False, **kwargs)


@pytest.fixture
def at(monkeypatch):
    """Sets the clock of transformers' templates."""

    def set_clock(moment):
        fake = types.SimpleNamespace(now=lambda: moment)
        name = "transformers.utils.chat_template_utils.datetime"
        monkeypatch.setattr(name, fake)

    return set_clock


# Dates


def test_a_template_that_reads_the_clock_is_refused():
    say = r"template's strftime_now\(%d %b %Y\) reads the clock.*config.contract.date"
    with pytest.raises(TemplateError, match=say):
        encoder(with_template(DATED))


def test_a_frozen_date_is_shown_whatever_the_clock_says(at):
    tokenizer = with_template(DATED)
    enc = encoder(tokenizer, date="2024-07-26")
    chat = [("user", "q"), ("assistant", "a")]
    for moment in CLOCKS:
        at(moment)
        out = enc.encode(record("q", "a"))
        ids = [*out.prompt, *out.responses[0]]
        assert enc.decode(out.prompt).startswith(
            "<|bos|><|system|>Today Date: 26 Jul 2024<|end|><|user|>q<|end|>"
        )
        frozen = theirs(tokenizer, chat, chat_template=enc.contract.template)
        assert ids == [tokenizer.bos_token_id, *frozen]
        text = theirs(tokenizer, chat, tokenize=False)
        assert moment.strftime("%d %b %Y") in text  # what is not frozen


def test_the_contracts_sha_is_that_of_the_date():
    dates = ("2024-07-26", "2024-07-27")
    made = [make_contract(CONFIG | {"date": d}, with_template(DATED)) for d in dates]
    assert len({c.template_sha256 for c in made}) == 2
    assert len({c.token_sha() for c in made}) == 2
    again = make_contract(CONFIG | {"date": dates[0]}, with_template(DATED))
    assert again == made[0]


@pytest.mark.parametrize(
    "words",
    ["%d %b %Y", "%B %-d, %Y", "%A, week %V of %G", "%j%% of %y", "%x", "%F\n%e",
     "'%Y' \"%m\" \\%d", "é %d 🙂 %a"],
)  # fmt: skip
def test_a_frozen_date_has_the_words_of_strftime(words):
    literal = words.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    text = pinned("{{ strftime_now('" + literal + "') }}", "2024-07-26")
    got = theirs(BYTE, [("user", "q")], chat_template=text, tokenize=False)
    assert got == DAY.strftime(words)


@pytest.mark.parametrize(
    "text",
    [
        "{% set now = strftime_now %}{{ now('%Y') }}",
        "{{ strftime_now(format='%Y') }}",
        "{% set f = '%Y' %}{% for m in messages %}{{ strftime_now(f) }}{% endfor %}",
        "{% macro say() %}{{ strftime_now('%Y') }}{% endmacro %}{{ say() }}",
        "{% macro say(now) %}{{ now('%Y') }}{% endmacro %}{{ say(strftime_now) }}",
        "{% if false %}{% set strftime_now = 1 %}{% endif %}{{ strftime_now('%Y') }}",
        "{% generation %}{{ strftime_now('%Y') }}{% endgeneration %}",
        "{% set y = strftime_now('%Y') | int - 1 %}{{ y + 1 }}",
        "\n{{ strftime_now('%Y') }}",
        "\n\n  {%- if true %}\n  {% if true %}\n {{ strftime_now('%Y') }}\n"
        "  {% endif %}\n{% endif %}\n",
        "  {% if true %} {{ strftime_now('%Y') }}{% endif %}",
        "  {{ strftime_now('%Y') }}",
        "{# strftime_now #}\n {{ strftime_now('%Y') }}",
    ],
)
def test_freezing_changes_nothing_but_the_clock(text, at):
    render = lambda t: theirs(
        BYTE, [("user", "q"), ("assistant", "a")], chat_template=t, tokenize=False
    )
    at(datetime.datetime.combine(DAY, datetime.time(12)))
    want = render(text)
    assert "2024" in want
    at(CLOCKS[1])
    assert render(text) == want.replace("2024", "2031")
    assert render(pinned(text, "2024-07-26")) == want
    with pytest.raises(Exception, match="reads the clock"):
        render(pinned(text, ""))


@pytest.mark.parametrize(
    "call",
    ["strftime_now('%H:%M')", "strftime_now('%c')", "strftime_now('%d' ~ ' %b')",
     "strftime_now(messages[0].content)", "strftime_now()"],
)  # fmt: skip
def test_a_time_of_day_or_a_made_up_format_is_not_frozen(call):
    tokenizer = with_template("{{ " + call + " }}" + TURNS)
    with pytest.raises(TemplateError, match=r"strftime_now\(.*is not frozen by"):
        encoder(tokenizer, date="2024-07-26")


def test_a_clock_that_only_some_records_read_never_gives_todays_date():
    tokenizer = with_template(SELDOM)
    enc = encoder(tokenizer)
    assert enc.decode(enc.encode(record("q", "a")).responses[0]) == "a<|end|>"
    say = "record r7: .*reads the clock.*config.contract.date"
    with pytest.raises(TemplateError, match=say):
        enc.encode(record("q", "NOW", id="r7"))
    with pytest.raises(Exception, match="reads the clock"):  # an exported one, too
        theirs(tokenizer, [("user", "NOW")], chat_template=enc.contract.template)
    frozen = encoder(tokenizer, date="2024-07-26").encode(record("q", "NOW"))
    assert enc.decode(frozen.responses[0]) == "2024-07-26<|end|>"


@pytest.mark.parametrize("roles", [("system", "user"), ("user", "assistant", "tool")])
@pytest.mark.parametrize("generation", ["", "not "])
def test_every_frame_is_tried(roles, generation):
    path = f"{generation}add_generation_prompt and messages[-1].role == '{roles[-1]}'"
    path += f" and messages | length == {len(roles)}"
    clock = "{% if " + path + " %}{{ strftime_now('%Y') }}{% endif %}"
    with pytest.raises(TemplateError, match="reads the clock"):
        encoder(with_template(TURNS + clock))


@pytest.mark.parametrize(
    "text",
    [
        TURNS,
        "{# strftime_now #}" + TURNS,
        "{{ 'strftime_now' }}" + TURNS,
        "{% macro strftime_now(f) %}May{% endmacro %}{{ strftime_now('%b') }}" + TURNS,
        pinned(DATED, "2024-07-26"),
        pinned(SELDOM, ""),
    ],
)
def test_a_date_that_is_never_shown_is_refused(text, tmp_path):
    assert encoder(with_template(text)).contract.template == text
    with pytest.raises(ContractError, match=r"date = '2024-07-27' has no effect"):
        encoder(with_template(text), date="2024-07-27")
    path = tmp_path / "t.jinja"
    path.write_text(text)
    with pytest.raises(ContractError, match=r"t.jinja': .*has no effect"):
        encoder(BYTE, template=str(path), date="2024-07-27")


def test_a_template_file_is_frozen_too(tmp_path):
    path = tmp_path / "t.jinja"
    path.write_text(DATED)
    enc = encoder(BYTE, template=str(path), date="2024-07-26")
    assert enc.contract.template == pinned(DATED, "2024-07-26")


def test_a_clock_in_a_block_is_refused():
    text = "{% block day %}{{ strftime_now('%Y') }}{% endblock %}" + TURNS
    for date in ("", "2024-07-26"):
        with pytest.raises(TemplateError, match=r"in a \{% block %\}"):
            encoder(with_template(text), date=date)


def test_a_contract_with_a_clock_is_refused():
    contract = make_contract(CONFIG, BYTE)
    sha = sha256_text(SELDOM)
    by_hand = dataclasses.replace(contract, template=SELDOM, template_sha256=sha)
    with pytest.raises(TemplateError, match="reads the clock"):
        Encoder(by_hand, BYTE)


@pytest.mark.parametrize("date", ["2024-02-30", "20240726", "2024-W30-5", "today", "0"])
def test_a_date_that_is_none(date):
    config = load("rm_jax:quickstart")
    config.contract.date = date
    with pytest.raises(limits.ConfigError, match=f"contract.date = '{date}': want"):
        validate(config)


# The tokenizers of open models

TALKS = {
    "one turn": [("user", "What is 2+2?"), ("assistant", "It is 4.")],
    "system": [("system", "Be brief."), ("user", "Hi!"), ("assistant", "Hello 🙂")],
    "turns": [
        ("user", "Name a colour."), ("assistant", "Blue."), ("user", "Another?"),
        ("assistant", "Red,\n\nor green:\n```\nx = [1, 2]\n```"),
    ],
    "all": [
        ("system", "You are terse."), ("user", "a\nb"), ("assistant", "c"),
        ("user", "naïve 12345"), ("assistant", "日本語 and more"),
    ],
    "tool": [
        ("user", "Weather?"), ("assistant", "Let me see."), ("tool", "12 degrees"),
        ("assistant", "It is cold."),
    ],
    "nothing": [("user", "Say nothing."), ("assistant", "")],
}  # fmt: skip


@pytest.fixture(scope="module")
def real(real_tokenizer):
    """A tokenizer and the encoder of its own template, by name."""

    @functools.cache
    def make(name):
        tokenizer = real_tokenizer(name)
        return tokenizer, of(tokenizer)

    return make


def of(tokenizer, **changes) -> Encoder:
    bos = "none" if tokenizer.bos_token is None else "one"
    return encoder(tokenizer, bos=bos, **changes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("talk", TALKS)
def test_same_ids_as_transformers(name, talk, real):
    (tokenizer, enc), messages = real(name), TALKS[talk]
    out = enc.encode(record(messages[:-1], messages[-1:]))
    assert [*out.prompt, *out.responses[0]] == theirs(tokenizer, messages)
    head = theirs(tokenizer, messages[:-1], add_generation_prompt=True)
    assert out.prompt.tolist() == head


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_of_a_message_are_words(name, real):
    tokenizer, enc = real(name)
    special = sorted(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)
    names = ["<|eot_id|>", "<|im_end|>", "<|im_start|>", "<|begin_of_text|>"]
    attack = "x" + "".join([*names, *tokenizer.convert_ids_to_tokens(special)]) + "y"
    roles = ("system", "user", "assistant", "user")
    evil = enc.encode(record([(role, attack) for role in roles], attack))
    plain = enc.encode(record([(role, "x") for role in roles], "x"))
    for bad, good in zip(
        (evil.prompt, *evil.responses), (plain.prompt, *plain.responses), strict=True
    ):
        assert bad[np.isin(bad, special)].tolist() == [
            i for i in good.tolist() if i in special
        ]
    assert enc.decode(evil.prompt, skip_special=True).count(attack) == len(roles)
    assert enc.decode(evil.responses[0], skip_special=True).count(attack) == 1
    for forged in set(names) & set(tokenizer.get_vocab()):
        id = tokenizer.convert_tokens_to_ids(forged)
        alone = enc.encode(record(f"a{forged}b", "c"))
        without = enc.encode(record("ab", "c"))
        assert (alone.prompt == id).sum() == (without.prompt == id).sum()


@pytest.mark.parametrize("talk", TALKS)
def test_llama_3_has_one_bos(talk, real):
    (tokenizer, enc), messages = real("llama3_1"), TALKS[talk]
    out = enc.encode(record(messages[:-1], messages[-1:]))
    both = np.concatenate([out.prompt, *out.responses])
    assert np.flatnonzero(both == tokenizer.bos_token_id).tolist() == [0]
    assert tokenizer.bos_token == "<|begin_of_text|>"


def test_a_dated_template_on_llama_3(real, at, tmp_path):
    tokenizer, _ = real("llama3_1")
    path = tmp_path / "dated.jinja"
    path.write_text(
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}"
        "{% if loop.first %}{{ 'Today Date: ' + strftime_now('%d %b %Y') + '\\n\\n' }}"
        "{% endif %}{{ m.content | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    )
    with pytest.raises(ContractError, match="reads the clock"):
        of(tokenizer, template=str(path))
    enc = of(tokenizer, template=str(path), date="2024-07-26")
    messages, found = TALKS["all"], []
    for moment in CLOCKS:
        at(moment)
        out = enc.encode(record(messages[:-1], messages[-1:]))
        found.append([*out.prompt, *out.responses[0]])
        template = enc.contract.template
        assert found[-1] == theirs(tokenizer, messages, chat_template=template)
    assert found[0] == found[1]
    assert "Today Date: 26 Jul 2024\n\nYou are terse." in enc.decode(found[0])


def test_qwen_3_thinks_in_the_response_alone(real):
    """An empty block of thoughts stands in the last answer, and in no earlier one."""
    tokenizer, enc = real("qwen3")
    before = [
        ("user", "1?"),
        ("assistant", "<think>\nHm.\n</think>\n\n1."),
        ("user", "2?"),
    ]
    out = enc.encode(record(before, "2.", "<think>\nSo.\n</think>\n\n2."))
    assert enc.decode(out.prompt) == (
        "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n1.<|im_end|>\n"
        "<|im_start|>user\n2?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [enc.decode(r) for r in out.responses] == [
        "<think>\n\n</think>\n\n2.<|im_end|>\n",
        "<think>\nSo.\n</think>\n\n2.<|im_end|>\n",
    ]
    thought = [*before, ("assistant", "<think>\nSo.\n</think>\n\n2.")]
    assert [*out.prompt, *out.responses[1]] == theirs(tokenizer, thought)


def test_qwen_3_does_not_go_on_after_an_answer(real):
    _, enc = real("qwen3")
    say = "record r1, response 0: .*'<think>.*a turn must be printed alike whatever"
    with pytest.raises(TemplateError, match=say):
        enc.encode(record([("user", "q"), ("assistant", "a")], "b"))


# The token that pads an export


def pad_of(tokenizer, enc) -> str:
    scorer = types.SimpleNamespace(
        tokenizer=tokenizer, contract=enc.contract, encoder=lambda: enc
    )
    pad = _pad(scorer)
    assert tokenizer.convert_tokens_to_ids(pad) < enc.vocab_size  # no resize
    assert pad not in (tokenizer.eos_token, tokenizer.bos_token)
    return pad


@pytest.mark.parametrize(
    ("name", "pad"),
    [
        ("qwen3", "<|endoftext|>"),
        # This package has the special tokens of Llama 3.0, which has no pad.
        ("llama3_1", "<|reserved_special_token_0|>"),
        ("smollm2", "<|endoftext|>"),
    ],
)
def test_an_export_pads_with_a_token_that_ends_nothing(name, pad, real):
    assert pad_of(*real(name)) == pad


def test_an_export_of_llama_3_1_pads_with_its_own(real):
    tokenizer, _ = real("llama3_1")
    theirs = "<|finetune_right_pad_id|>"  # what 3.1 calls 128004, reserved in 3.0
    text = tokenizer.backend_tokenizer.to_str()
    text = text.replace("<|reserved_special_token_2|>", theirs)
    named = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        chat_template=tokenizer.chat_template,
    )
    assert pad_of(named, of(named)) == theirs
    assert named.convert_tokens_to_ids(theirs) == 128004


@pytest.mark.parametrize(
    ("address", "tokenizer"),
    [
        ("backbone:llama3.1-8b", "llama3_1"),
        ("backbone:qwen3-8b", "qwen3"),
        pytest.param("backbone:gemma2-9b", "gemma2", marks=NO_GEMMA),
        pytest.param("backbone:gemma2-27b", "gemma2", marks=NO_GEMMA),
        ("smollm2:frozen", "smollm2"),
    ],
)
def test_configs_of_backbones_take_the_tokenizer_of_their_backbone(
    real_tokenizer, address, tokenizer
):
    contract, tokenizer = load(f"rm_jax:{address}").contract, real_tokenizer(tokenizer)
    own = Encoder(make_contract(contract, tokenizer), tokenizer)
    chat = [("user", "a?"), ("assistant", "b."), ("user", "c?")]
    found = own.encode(record(chat, "d.", "no"))
    lead = own.decode(found.prompt)
    assert lead.count("a?") == lead.count("b.") == lead.count("c?") == 1
    assert [own.decode(r).count("d.") for r in found.responses] == [1, 0]
    begins = [token == tokenizer.bos_token_id for token in found.prompt[:2]]
    assert begins == [contract.bos == "one", False]
