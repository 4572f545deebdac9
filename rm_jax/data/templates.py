"""Chat templates: a record becomes tokens, and no message can forge a special one.

Special tokens that a message spells out ("<|end|>") are swapped for private-use
characters before the template is rendered, so every one left in the rendered text was
printed by the template; `tokenize` reads the swapped ones as ordinary text.

The template is trusted: one that prints half of a special token right beside a message
could be completed by it.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Int

from rm_jax.data import clock
from rm_jax.data.schema import Message, Record, Step
from rm_jax.data.steps import ends
from rm_jax.data.tokenizers import plain_backend

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Followed by one character: FIRST + index into `escaped`, or the next: a step's end.
ESCAPE = "\U0010fffd"
FIRST = 0x100000
PROBE = "rmjaxprobe"
# Conversations whose rendering shows what the template prints around messages.
FRAMES = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("user", "assistant", "tool"),
)


class TemplateError(ValueError):
    """A record that a template cannot render, or a template that cannot be used."""


class ClockError(TemplateError):
    """A template that asks for today's date."""


class Tokens(NamedTuple):
    """Tokens of a text.

    Attributes:
      ids: of the tokens.
      steps: index of the last token of each step whose end is marked in the text; -1
        where no token comes before the end.
    """

    ids: Int[np.ndarray, "t"]
    steps: tuple[int, ...]


class ChatTemplate:
    """Renders and tokenises prompts and responses with one template.

    Args:
      text: the Jinja template, as `clock.pinned` gives it.
      tokenizer: gives the special tokens, and renders in transformers' sandbox.

    Attributes:
      guarded: strings that only the template may turn into tokens: special tokens, and
        other added tokens that the template prints around messages.
      closing: what the template prints after an assistant's last words.
      backend: the tokenizer's own copy of the Rust tokenizer.

    Raises:
      TemplateError: the template cannot render a user and an assistant message, does
        not continue its own generation prompt, or is not pinned.
      ClockError: it asks for a date that it was not pinned to.
    """

    def __init__(self, text: str, tokenizer: "PreTrainedTokenizerFast"):
        if clock.reads_clock(text):
            raise TemplateError(
                "the contract's chat template reads the clock, in a {% block %} or as "
                "contract.json was written by hand: name another in contract.template"
            )
        self.text, self._tokenizer = text, tokenizer
        probe = [{"role": "user", "content": PROBE}]
        answer = {"role": "assistant", "content": PROBE}
        (head,) = self._apply([probe], True, "probe")
        (full,) = self._apply([[*probe, answer]], False, "probe")
        tail = _after(head, full, "probe")
        if PROBE not in tail:
            raise TemplateError(
                "the chat template does not print the assistant's words; it prints "
                f"{tail!r} for them"
            )
        self.closing = tail.rpartition(PROBE)[2]
        self.guarded = self._find_guarded()
        escaped = (*self.guarded, ESCAPE)
        longest_first = sorted(escaped, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        self._codes = {s: ESCAPE + chr(FIRST + i) for i, s in enumerate(escaped)}
        self.backend = plain_backend(tokenizer)
        self._is_guarded = self._guarded_ids(tokenizer.unk_token_id)
        self._plain = [*self._plain_ids(escaped), np.zeros(0, np.int32)]
        self._step_end = ESCAPE + chr(FIRST + len(escaped))

    def render(self, record: Record) -> tuple[str, list[str]]:
        """Escaped text of the prompt and of each response.

        The prompt is rendered with the generation prompt; a response is what the
        rendering of prompt + response adds to it, so it opens with an assistant
        message. A prompt may end in an assistant message if the template allows it: the
        response is then a new turn, never the rest of that one. Where a response has
        steps their ends are marked in the text: `tokenize` tells where they are.

        Raises:
          TemplateError: naming the record and what the template said.
        """
        where = f"record {record.id}"
        prompt = self._messages(record.prompt)
        (head,) = self._apply([prompt], True, where)
        steps = record.steps or ((),) * len(record.responses)
        pairs = zip(record.responses, steps, strict=True)
        chats = [[*prompt, *self._messages(r, s)] for r, s in pairs]
        fulls = self._apply(chats, False, where)
        return head, [
            _after(head, full, f"{where}, response {k}") for k, full in enumerate(fulls)
        ]

    def tokenize(self, texts: Sequence[str], names: Sequence[str]) -> list[Tokens]:
        """Tokens of rendered (escaped) texts, no BOS or EOS added.

        Every step is tokenised by itself, so no token crosses the end of one, and the
        tokens of a step do not depend on those that follow.

        Args:
          texts: from `render`, or `trust`.
          names: what each belongs to, for messages.

        Raises:
          TemplateError: the text is not Unicode, or its normal form spells out a
            special token that the text itself does not.
        """
        parts = [re.split(f"{ESCAPE}(.)", text, flags=re.DOTALL) for text in texts]
        pieces = [piece for part in parts for piece in part[::2]]
        encode = self.backend.encode_batch_fast
        try:
            found = iter(encode(pieces, add_special_tokens=False))
        except (TypeError, UnicodeEncodeError) as error:
            raise _not_unicode(texts, names) or error from None
        out = []
        for text, name, part in zip(texts, names, parts, strict=True):
            ids, steps = [np.array(next(found).ids, np.int32)], []
            for code in part[1::2]:
                if code == self._step_end[-1]:
                    steps.append(sum(map(len, ids)) - 1)
                ids.append(self._plain[ord(code) - FIRST])
                ids.append(np.array(next(found).ids, np.int32))
            whole = ids[0] if len(ids) == 1 else np.concatenate(ids)
            out.append(Tokens(whole, tuple(steps)))
            if self._is_guarded[whole].sum() > self._printed(text):
                raise TemplateError(
                    f"{name}: the tokenizer's normaliser turns some of its text into a "
                    "special token: remove or rewrite that text"
                )
        return out

    def trust(self, text: str) -> str:
        """Text whose special tokens `tokenize` shall parse as such."""
        return text.replace(ESCAPE, self._codes[ESCAPE])

    def _printed(self, text: str) -> int:
        """Guarded strings left in an escaped text: the template's own."""
        found = self._pattern.findall(text)
        return len(found) - found.count(ESCAPE)

    def _guarded_ids(self, unknown: int | None) -> np.ndarray:
        """Truth table over ids; unknown words give <unk> without being a forgery."""
        table = np.zeros(max(self.backend.get_vocab().values()) + 1, bool)
        table[[self.backend.token_to_id(s) for s in self.guarded]] = True
        if unknown is not None:
            table[unknown] = False
        return table

    def _plain_ids(self, strings: Sequence[str]) -> list[Int[np.ndarray, "_"]]:
        """Ids of each string as ordinary text: whole, or else by characters."""
        self.backend.encode_special_tokens = True
        out = []
        for string in strings:
            for pieces in ([string], list(string)):
                found = self.backend.encode_batch_fast(pieces, add_special_tokens=False)
                ids = np.array([i for e in found for i in e.ids], np.int32)
                if not self._is_guarded[ids].any():
                    break
            else:
                raise TemplateError(
                    f"the tokenizer cannot write {string!r} as ordinary text, so a "
                    "message could forge it: use another tokenizer"
                )
            out.append(ids)
        self.backend.encode_special_tokens = False
        return out

    def _messages(
        self, messages: Sequence[Message], steps: Sequence[Step] = ()
    ) -> list[dict[str, str]]:
        swap = lambda match: self._codes[match[0]]
        escaped = lambda text: self._pattern.sub(swap, text)
        if not steps:
            return [{"role": m.role, "content": escaped(m.content)} for m in messages]
        found = ends([m.content for m in messages], [s.text for s in steps])
        out = []
        for i, m in enumerate(messages):
            cuts = [0, *(end for message, end in found if message == i)]
            parts = [m.content[a:b] for a, b in itertools.pairwise(cuts)]
            content = "".join(escaped(part) + self._step_end for part in parts)
            rest = escaped(m.content[cuts[-1] :])
            out.append({"role": m.role, "content": content + rest})
        return out

    def _apply(
        self, chats: Sequence[Sequence[Mapping[str, str]]], generation: bool, where: str
    ) -> list[str]:
        try:
            return self._tokenizer.apply_chat_template(
                chats,
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=generation,
            )
        except ImportError:
            raise
        except Exception as error:  # whatever a template raises, with the record's id
            if str(error).startswith(clock.CALLED):
                raise ClockError(f"{where}: the chat template's {error}") from error
            roles = ", ".join(m["role"] for m in chats[0])
            raise TemplateError(
                f"{where}: the chat template fails on messages of {roles}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _find_guarded(self) -> tuple[str, ...]:
        frames = self.closing
        for roles, generation in itertools.product(FRAMES, (True, False)):
            chat = [{"role": role, "content": PROBE} for role in roles]
            try:
                frames += self._apply([chat], generation, "probe")[0]
            except ClockError:
                raise
            except TemplateError:
                continue  # a role that this template refuses prints nothing
        added = self._tokenizer.added_tokens_decoder.values()
        # Gemma has added tokens of blank space, which are ordinary text.
        names = {t.content for t in added if t.special or t.content in frames}
        return tuple(sorted(n for n in names if n.strip()))


def _after(head: str, full: str, where: str) -> str:
    """What `full` adds to `head`."""
    if full.startswith(head):
        return full[len(head) :]
    pairs = enumerate(zip(head, full, strict=False))
    i = next((i for i, (a, b) in pairs if a != b), min(len(head), len(full)))
    raise TemplateError(
        f"{where}: the chat template's rendering with the response does not start with "
        f"the rendering of the prompt; from character {i} on the prompt has "
        f"{head[i : i + 40]!r} and the whole {full[i : i + 40]!r}: a response opens "
        "with an assistant message, the generation prompt must be part of every "
        "assistant turn, and a turn must be printed alike whatever follows it; name a "
        "template that does so in contract.template"
    )


def _not_unicode(texts: Sequence[str], names: Sequence[str]) -> TemplateError | None:
    """The error for the first text that has no UTF-8 form."""
    for text, name in zip(texts, names, strict=True):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return TemplateError(f"{name}: its text is not Unicode: {error}")
    return None
