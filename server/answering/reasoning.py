"""The reasoning that a reply to a conversation may begin with: its format, and where the reply begins.

The marks come from the model's format; templates write one of them or both at the end of a prompt. A reply
can also continue the last message, which may be in the middle of its reasoning.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..protocol.openai.chat import ChatCall
from ..reasoning import Place, ReasoningFormat, ReasoningSplitter, grammar_of_reply
from ..text.text_model import SpecialsShown, TextModel

_TAIL = 64
"""Tokens of a prompt that can hold a mark and the white space after it."""


@dataclass(frozen=True, slots=True)
class ReplyBegins:
    """Where a reply begins, in the format of its model's reasoning."""

    format: ReasoningFormat
    place: Place

    def grammar(self, answer: str | None, text: TextModel) -> str | None:
        """The grammar of the reply, whose answer follows a grammar."""
        return grammar_of_reply(self.format, self.place, answer, text.special_id)

    def splitter(self) -> ReasoningSplitter:
        """A splitter for one choice."""
        return ReasoningSplitter(self.format, self.place)


def beginning_of(
    call: ChatCall, prompt: Sequence[int], text: TextModel, format: ReasoningFormat | None
) -> ReplyBegins | None:
    """Where a reply to this prompt begins; None if its reasoning is not split off."""
    if format is None or not call.reasoning.separate:
        return None
    decoder = SpecialsShown(text).detokenizer()
    place = format.place_after("".join(map(decoder.push, prompt[-_TAIL:])))
    if place == "before" and call.rendering.continue_final_message:
        place = format.place_within(call.messages[-1]["content"])
    return ReplyBegins(format, place)
