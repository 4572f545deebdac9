"""The scoring contract: the one place where text becomes tokens.

Training, evaluation, export and serving all encode through `Encoder`, built from a
`Contract` that is saved as contract.json with every checkpoint. Prompt and response are
tokenised apart, so a response's tokens do not depend on what was asked, and a score
never depends on the other responses of its record. So are the steps of a response that
names them: a step's last token is its own, and the step is scored there.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int

from rm_jax import schemas, store
from rm_jax.data.clock import pinned
from rm_jax.data.schema import Record
from rm_jax.data.templates import ChatTemplate, Tokens
from rm_jax.data.terms import (
    CHOICES,
    Contract,
    ContractError,
    sha256_text,
)
from rm_jax.data.tokenizers import tokenizer_sha

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONFIGURED = ("tokenizer", "max_length", "max_response", *CHOICES)
BLOCK = 256  # records tokenised in one call


def make_contract(
    config: Mapping[str, Any], tokenizer: "PreTrainedTokenizerFast"
) -> Contract:
    """The contract that config.contract asks for.

    Args:
      config: tokenizer, template ("tokenizer" or the path of a Jinja file), date (that
        a template shows as today's, or ""), bos, eos, max_length, max_response,
        truncation_side, over_long, pooling.
      tokenizer: what `config["tokenizer"]` names, built.

    Raises:
      ContractError: a value out of range, a template file that cannot be used, a
        tokenizer without template, or a date that the template never shows.
    """
    if config["template"] == "tokenizer":
        own = _own_template(config["tokenizer"], tokenizer)
        template = pinned(own, config["date"])
    else:
        template = _template_of_file(config["template"], config["date"], tokenizer)
    return Contract(
        schema_version=schemas.VERSIONS["contract.json"],
        tokenizer_sha=tokenizer_sha(tokenizer),
        template=template,
        template_sha256=sha256_text(template),
        **{name: config[name] for name in CONFIGURED},
    )


def _own_template(spec: str, tokenizer: "PreTrainedTokenizerFast") -> str:
    try:
        if isinstance(tokenizer.chat_template, str | dict) and tokenizer.chat_template:
            return tokenizer.get_chat_template()
        why = "has no chat template"
    except ValueError as error:  # several, and none is the default
        why = f"has no usable chat template: {error}"
    raise ContractError(
        f"tokenizer {spec!r} {why}: name a Jinja file in contract.template"
    )


def _template_of_file(
    path: str, date: str, tokenizer: "PreTrainedTokenizerFast"
) -> str:
    """The text of a template file, pinned, and tried while its name is still known."""
    try:
        text = pinned(store.read_text(path), date)
        ChatTemplate(text, tokenizer)
    except (OSError, ValueError) as error:
        why = str(error).removeprefix(f"{path}: ")
        raise ContractError(
            f"config.contract.template = {path!r}: {why}; want the path of a Jinja "
            'file, or "tokenizer"'
        ) from error
    return text


def prompt_tokens(
    prompt: Int[np.ndarray, "p"], keep: int, side: str, bos_id: int | None
) -> Int[np.ndarray, "keep"]:
    """The prompt cut to `keep` tokens.

    Args:
      prompt: all its tokens, the first of them BOS unless `bos_id` is None.
      keep: tokens wanted, at least 1; more than there are means all of them.
      side: "left" keeps BOS and the last tokens, "right" the first ones.
      bos_id: BOS of the contract's encoder.
    """
    if keep < 1:
        raise ContractError(f"prompt_tokens: keep = {keep}: must be at least 1")
    if keep >= len(prompt):
        return prompt
    if side == "right":
        return prompt[:keep]
    if bos_id is None:
        return prompt[len(prompt) - keep :]
    return np.concatenate([prompt[:1], prompt[len(prompt) - keep + 1 :]])


class Encoded(NamedTuple):
    """A record's tokens.

    Attributes:
      prompt: the whole prompt: BOS, messages, generation prompt; never cut.
      responses: tokens of each response, at most max_response.
      prompt_keep: tokens of the prompt that fit before each response; `prompt_tokens`
        cuts it.
      counts: what was cut or unknown in this record; names as in `Encoder.counts`.
      steps: of each response the index of the last token of each of its steps, without
        those that were cut off; () where no response has steps.
    """

    prompt: Int[np.ndarray, "p"]
    responses: tuple[Int[np.ndarray, "_"], ...]
    prompt_keep: Int[np.ndarray, "k"]
    counts: Mapping[str, int]
    steps: tuple[Int[np.ndarray, "_"], ...] = ()


class Encoder:
    """Turns records into tokens as a contract says.

    Args:
      contract: the rules.
      tokenizer: the one whose sha256 the contract names.

    Attributes:
      contract: the rules.
      template: renders and tokenises; knows which strings are guarded.
      bos_id: BOS that every prompt begins with, or None.
      vocab_size: largest token id + 1.
      counts: totals so far: records, dropped (records), responses, responses_cut,
        response_tokens_cut, prompts_cut (one a response), prompt_tokens_cut,
        unknown_tokens, steps, steps_cut.

    Raises:
      ContractError: tokenizer and contract do not belong together.
    """

    def __init__(self, contract: Contract, tokenizer: "PreTrainedTokenizerFast"):
        sha = tokenizer_sha(tokenizer)
        if sha != contract.tokenizer_sha:
            raise ContractError(
                f"this tokenizer has sha256 {sha[:12]}, the contract was made with "
                f"{contract.tokenizer!r} {contract.tokenizer_sha[:12]}: load that one"
            )
        self.contract = contract
        self.template = ChatTemplate(contract.template, tokenizer)
        self.counts: Counter[str] = Counter()
        self.vocab_size = max(self.template.backend.get_vocab().values()) + 1
        self._set_ids(tokenizer)
        (closing,) = self.template.tokenize([self.template.closing], ["closing"])
        self._closing = self._with_eos(closing.ids)
        self._check_room()

    def encode(self, record: Record) -> Encoded | None:
        """Tokens of one record; None where over_long = "drop" drops it.

        Raises:
          ValueError: naming the record, when it cannot be rendered, a response has no
            tokens, or it is too long and over_long = "error".
        """
        ((_, encoded),) = self.encode_many([record])
        return encoded

    def encode_many(
        self, records: Iterable[Record]
    ) -> Iterator[tuple[Record, Encoded | None]]:
        """Each record with its tokens, in order; faster than one by one."""
        records = iter(records)
        while block := list(itertools.islice(records, BLOCK)):
            rendered = [self.template.render(r) for r in block]
            texts = [t for head, tails in rendered for t in (head, *tails)]
            names = [f"record {r.id}" for r in block for _ in (0, *r.responses)]
            tokens = iter(self.template.tokenize(texts, names))
            for record in block:
                prompt = next(tokens).ids
                responses = [next(tokens) for _ in record.responses]
                name = f"record {record.id}"
                steps = self._steps(record, responses, name)
                ids = [response.ids for response in responses]
                yield record, self._fit(prompt, ids, name, steps)

    def encode_templated(
        self, prompt: str, response: str, name: str = "text"
    ) -> Encoded | None:
        """Tokens of text that is already templated, for trusted callers only.

        Special tokens in both texts are parsed as such, so whoever writes the text can
        forge turns. BOS, EOS and length rules are the same as in `encode`.
        """
        texts = [self.template.trust(t) for t in (prompt, response)]
        both = self.template.tokenize(texts, [name, name])
        return self._fit(both[0].ids, [both[1].ids], name)

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of token ids, for people to read."""
        return self.template.backend.decode(
            [int(i) for i in ids], skip_special_tokens=skip_special
        )

    def _set_ids(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        c = self.contract
        self._bos, self._eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._unknown = tokenizer.unk_token_id
        if self._unknown in (self._bos, self._eos):
            self._unknown = None  # GPT-2 names its end of text so; it never stands in
        if c.bos == "one" and self._bos is None:
            raise ContractError(
                f"contract.bos = 'one', but tokenizer {c.tokenizer!r} has no BOS "
                "token: set contract.bos = 'none'"
            )
        if c.eos == "append" and self._eos is None:
            raise ContractError(
                f"contract.eos = 'append', but tokenizer {c.tokenizer!r} has no EOS "
                "token: set contract.eos = 'template'"
            )
        self.bos_id: int | None = self._bos if c.bos == "one" else None

    def _check_room(self) -> None:
        if self.contract.max_response <= len(self._closing):
            raise ContractError(
                f"contract.max_response = {self.contract.max_response} leaves no room "
                f"beside the {len(self._closing)} tokens that close every response: "
                "raise it"
            )

    def _steps(
        self, record: Record, responses: Sequence[Tokens], name: str
    ) -> tuple[np.ndarray, ...]:
        """Where the steps of each response end; () of a record without steps.

        Raises:
          ContractError: a step without tokens, or the template leaves some out.
        """
        if not any(record.steps):
            return ()
        for k, (response, steps) in enumerate(
            zip(responses, record.steps, strict=True)
        ):
            if len(response.steps) != len(steps):
                raise ContractError(
                    f"{name}, response {k}: the chat template prints "
                    f"{len(response.steps)} of its {len(steps)} steps: name another in "
                    "contract.template"
                )
            before = (-1, *response.steps)
            for j, (a, b) in enumerate(itertools.pairwise(before)):
                if a == b:
                    raise ContractError(
                        f"{name}, response {k}: step {j} has no tokens: join it to the "
                        "step before it"
                    )
        return tuple(np.array(r.steps, np.int32) for r in responses)

    def _fit(
        self,
        prompt: np.ndarray,
        responses: Sequence[np.ndarray],
        name: str,
        steps: Sequence[np.ndarray] = (),
    ) -> Encoded | None:
        """BOS, EOS and the length rules, response by response."""
        c = self.contract
        prompt = self._with_bos(prompt, name)
        whole = [self._with_eos(response) for response in responses]
        for k, response in enumerate(whole):
            self._check_response(prompt, response, f"{name}, response {k}")
        kept = tuple(self._cut(response) for response in whole)
        keeps = [min(len(prompt), c.max_length - len(r)) for r in kept]
        stay = tuple(s[s < self._head(w)] for s, w in zip(steps, whole, strict=False))
        counts = self._count(prompt, whole, kept, keeps)
        counts["steps"], all_steps = sum(map(len, stay)), sum(map(len, steps))
        counts["steps_cut"] = all_steps - counts["steps"]
        if counts["responses_cut"] or counts["prompts_cut"]:
            if c.over_long == "error":
                raise self._too_long(prompt, whole, name)
            if c.over_long == "drop":
                self.counts.update(records=1, dropped=1)
                return None
        for key, n in counts.items():
            self.counts[key] += n
        return Encoded(prompt, kept, np.array(keeps, np.int32), counts, stay)

    def _count(self, prompt, whole, kept, keeps) -> dict[str, int]:
        cut = [len(a) - len(b) for a, b in zip(whole, kept, strict=True)]
        prompt_cut = [len(prompt) - keep for keep in keeps]
        unknown = 0
        if self._unknown is not None:
            unknown = sum(int((i == self._unknown).sum()) for i in (prompt, *kept))
        return {
            "records": 1,
            "dropped": 0,
            "responses": len(kept),
            "responses_cut": sum(n > 0 for n in cut),
            "response_tokens_cut": sum(cut),
            "prompts_cut": sum(n > 0 for n in prompt_cut),
            "prompt_tokens_cut": sum(prompt_cut),
            "unknown_tokens": unknown,
        }

    def _too_long(self, prompt, whole, name: str) -> ContractError:
        c = self.contract
        over = lambda r: len(r) > c.max_response or len(prompt) + len(r) > c.max_length
        k = next(k for k, response in enumerate(whole) if over(response))
        return ContractError(
            f"{name}: response {k} has {len(whole[k])} tokens (contract.max_response = "
            f"{c.max_response}), with its prompt {len(prompt) + len(whole[k])} "
            f"(contract.max_length = {c.max_length}): raise the limit or set "
            "contract.over_long to 'truncate' or 'drop'"
        )

    def _with_bos(self, prompt: np.ndarray, name: str) -> np.ndarray:
        """The prompt with as many leading BOS as the contract says."""
        lead = 0
        while lead < len(prompt) and prompt[lead] == self._bos:
            lead += 1
        if self.bos_id is None and lead:
            raise ContractError(
                f"{name}: its prompt begins with BOS and contract.bos = 'none': set "
                "contract.bos = 'one' or use a template without BOS"
            )
        if lead > 1:
            raise ContractError(
                f"{name}: its prompt begins with {lead} BOS tokens, contract.bos = "
                "'one': correct the template or the templated text"
            )
        if self.bos_id is not None and not lead:
            return np.concatenate([np.array([self.bos_id], np.int32), prompt])
        return prompt

    def _with_eos(self, ids: np.ndarray) -> np.ndarray:
        if self.contract.eos == "template" or (len(ids) and ids[-1] == self._eos):
            return ids
        return np.concatenate([ids, np.array([self._eos], np.int32)])

    def _check_response(self, prompt: np.ndarray, response: np.ndarray, name: str):
        if not len(prompt):
            raise ContractError(f"{name}: its prompt has no tokens")
        if not len(response):
            raise ContractError(
                f"{name}: no tokens to score: set contract.eos = 'append' or drop the "
                "record"
            )
        if len(prompt) == 1 and prompt[0] == self.bos_id == response[0]:
            raise ContractError(
                f"{name}: BOS before and in the response: move it to the prompt"
            )

    def _cut(self, response: np.ndarray) -> np.ndarray:
        """At most max_response tokens; the content's end goes, the closing stays."""
        head, limit = self._head(response), self.contract.max_response
        if head == len(response):
            return response
        return np.concatenate(
            [response[:head], response[len(response) - limit + head :]]
        )

    def _head(self, response: np.ndarray) -> int:
        """First tokens of a response that stay; all where it is not cut."""
        limit = self.contract.max_response
        if len(response) <= limit:
            return len(response)
        n = len(self._closing)
        if not n or not np.array_equal(response[-n:], self._closing):
            n = int(self.contract.eos == "append")  # not an assistant's closing
        return limit - n
