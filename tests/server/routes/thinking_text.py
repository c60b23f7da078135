"""A model that reasons, as far as the web process sees it: its template, a reply, a tool."""

from distaff.server.testing import BOS, FakeText

THOUGHT = "<think>\nIt is four, I think.\n</think>\n\n"
REPLY = THOUGHT + "Four."
OFF = "<think>\n\n</think>\n\n"
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


class ThinkingText(FakeText):
    """The template of a model that reasons; `opening` is at the end of its prompts."""

    chat_template = tool_template = "{{ '<think>' }}"
    opening = ""

    def encode_chat(self, messages, **options):
        return [*super().encode_chat(messages, **options), *self.opening.encode()]


class MarkIsOneToken(ThinkingText):
    """The mark that ends reasoning is one token, as in the vocabularies of models that reason."""

    def encode(self, text, *, add_special_tokens=True):
        return [BOS] if text == "</think>" else super().encode(text, add_special_tokens=add_special_tokens)

    def token_name(self, token):
        return "</think>" if token == BOS else super().token_name(token)
