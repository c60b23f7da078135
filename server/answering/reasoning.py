"""The reasoning that a reply may begin with: its format, where the reply begins, how much there may be.

The marks come from the model's format; templates write one of them or both at the end of a prompt. A reply
can also continue the last message, which may be in the middle of its reasoning. Reasoning is turned off by
the template if it has a variable for that, else by marks that are added to the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import BadRequest
from ..protocol.openai.chat import ChatCall
from ..protocol.reasoning import LIMIT
from ..reasoning import Limit, Place, ReasoningFormat, ReasoningSplitter, grammar_of_reply
from ..text.text_model import SpecialsShown, TextModel, token_of
from .prompt import Prompt

_TAIL = 64
"""Tokens of a prompt that can hold a mark and the white space after it."""

_SWITCHES = ("enable_thinking", "thinking")
"""Variables of templates that turn reasoning off: Qwen 3's and SmolLM 3's, Granite's."""


@dataclass(frozen=True, slots=True)
class ReplyBegins:
    """Where a reply begins, in the format of its model's reasoning.

    Attributes:
      added: ids that end reasoning, to be added to the prompt. limit: of the reasoning's tokens.
    """

    format: ReasoningFormat
    place: Place
    added: Prompt = ()
    limit: Limit | None = None

    def grammar(self, answer: str | None, text: TextModel) -> str | None:
        """The grammar of the reply, whose answer follows a grammar."""
        return grammar_of_reply(self.format, self.place, answer, text.special_id, self.limit)

    def splitter(self) -> ReasoningSplitter:
        """A splitter for one choice."""
        return ReasoningSplitter(self.format, self.place)


def asking(call: ChatCall, text: TextModel) -> ChatCall:
    """The call with the template's variables for its effort, unless it has them itself."""
    use = call.reasoning
    wanted: dict[str, object] = {"reasoning_effort": use.effort} if use.effort else {}
    if use.most == 0:
        wanted |= dict.fromkeys(_SWITCHES, False)
    options = {name: value for name, value in wanted.items() if name in text.template_options}
    rendering = replace(call.rendering, options=options | call.rendering.options)
    return replace(call, rendering=rendering)


def beginning_of(
    call: ChatCall, prompt: Sequence[int], text: TextModel, format: ReasoningFormat | None
) -> ReplyBegins | None:
    """Where a reply to this prompt begins; None if its reasoning is not split off.

    Raises:
      BadRequest: its reasoning cannot have the limit that is requested.
    """
    if format is None or not call.reasoning.separate:
        return None
    decoder = SpecialsShown(text).detokenizer()
    place = format.place_after("".join(map(decoder.push, prompt[-_TAIL:])))
    rendering, most = call.rendering, call.reasoning.most
    if place == "before" and rendering.continue_final_message:
        place = format.place_within(call.messages[-1]["content"])
    if most == 0 and (place == "inside" or (place == "before" and _opens(call, text))):
        begin = format.begin if place == "before" else ""
        added = text.encode(f"{begin}\n\n{format.end}\n\n", add_special_tokens=False)
        return ReplyBegins(format, "after", tuple(added))
    return ReplyBegins(format, place, limit=_limit(most, text, format) if most else None)


def _limit(most: int, text: TextModel, format: ReasoningFormat) -> Limit:
    """A limit of this many tokens. Raises BadRequest if the mark that ends reasoning is several tokens."""
    token = token_of(text, format.end)
    if token is None:
        reason = f"this model writes '{format.end}' with several tokens; expected no limit"
        raise BadRequest(f"The reasoning of this model cannot have a limit: {reason}.", LIMIT)
    return Limit(most, token)


def _opens(call: ChatCall, text: TextModel) -> bool:
    """Whether the reply is a new message, and its template has no variable that turns reasoning off."""
    return call.rendering.add_generation_prompt and not any(
        name in text.template_options for name in _SWITCHES
    )
