"""Chat templates that read the clock: made to show one date, or to refuse.

Some templates print today's date ("Today Date: 26 Jul 2024") by `strftime_now`, which
transformers gives every template. A macro of that name in front of the text takes its
place wherever the text is rendered: here, by transformers, TRL or vLLM.
"""

import datetime
import functools
import json
from typing import TYPE_CHECKING

from rm_jax.data.terms import ContractError

if TYPE_CHECKING:  # jinja2 is imported where a template is read
    import jinja2
    from jinja2 import nodes

CLOCK = "strftime_now"
# How the macros' errors begin; templates.py knows them by it.
CALLED = f"{CLOCK}("
REFUSED = (
    ") reads the clock, so scores would change with the date: set config.contract.date "
    'to the date that it shall always show, e.g. "2024-07-26"'
)
NOT_FROZEN = (
    ") is not frozen by config.contract.date = {date}: it asks for the time of day, or "
    "is put together while rendering: name a template that does neither in "
    "contract.template"
)


def pinned(text: str, date: str) -> str:
    """A template that gives the same words on any day, or an error.

    Args:
      text: the Jinja template.
      date: "2024-07-26" is shown wherever the text asks for today's, in the words that
        strftime has for it; "" makes the rendering fail there.

    Returns:
      The text, behind a macro if it may read the clock.

    Raises:
      ContractError: a date for a text that never reads the clock, or no Jinja.
    """
    if not reads_clock(text):
        if date:
            raise ContractError(
                f"config.contract.date = {date!r} has no effect: the chat template "
                "never reads the clock (one that was exported is pinned already): set "
                'it back to ""'
            )
        return text
    if not date:
        return _behind(f"{{{{ {_error(REFUSED)} }}}}", text)
    shown = json.dumps(_shown(text, date), ensure_ascii=False)
    failed = _error(NOT_FROZEN.format(date=date))
    body = f"{{{{ dates[format] if format in dates else {failed} }}}}"
    return _behind(f"{{% set dates = {shown} %}}{body}", text)


def reads_clock(text: str) -> bool:
    """Whether a template asks its surroundings for `strftime_now`, on whatever path.

    Raises:
      ContractError: the text is no Jinja.
    """
    if CLOCK not in text:
        return False
    from jinja2 import meta

    return CLOCK in meta.find_undeclared_variables(_tree(text))


def _behind(body: str, text: str) -> str:
    """The text behind a macro in the clock's place.

    transformers' blocks swallow one newline, so the text starts a line as before.
    """
    return f"{{% macro {CLOCK}(format) %}}{body}{{% endmacro %}}\n{text}"


def _error(why: str) -> str:
    return f"raise_exception({json.dumps(CALLED)} ~ format ~ {json.dumps(why)})"


def _shown(text: str, date: str) -> dict[str, str]:
    """What strftime gives on that date for each constant that may be a format.

    Formats whose words change with the time of day are left out.
    """
    from jinja2 import nodes

    day, time = datetime.date.fromisoformat(date), datetime.time
    ends = [datetime.datetime.combine(day, t) for t in (time.min, time.max)]
    constants = {c.value for c in _tree(text).find_all(nodes.Const)}
    formats = sorted(c for c in constants if isinstance(c, str) and "%" in c)
    found = {f: [end.strftime(f) for end in ends] for f in formats}
    return {f: first for f, (first, last) in found.items() if first == last}


@functools.cache
def _jinja() -> "jinja2.Environment":
    import jinja2
    from jinja2 import ext, nodes

    class Generation(ext.Extension):
        """`{% generation %}` of transformers: marks what an assistant says."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    return jinja2.Environment(extensions=[ext.loopcontrols, Generation])


def _tree(text: str) -> "nodes.Template":
    from jinja2 import TemplateSyntaxError

    try:
        return _jinja().parse(text)
    except (TemplateSyntaxError, RecursionError) as error:
        raise ContractError(
            f"the chat template is no Jinja: {type(error).__name__}: {error}"
        ) from error
