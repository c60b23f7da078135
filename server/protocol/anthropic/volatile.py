"""Removes from an agent's texts what changes with every request, so that the rest hits the prefix cache.

Claude Code begins its system prompt with a billing header, and marks how many tokens are left. Both differ
between requests of one conversation, and everything behind the first difference would be computed again. The
model needs neither. What a person writes is unchanged: of a user's blocks only those that are a mark alone
are left out.
"""

import re

_BILLING = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n?")
_MARK = "<total_tokens>[^<>]{0,100}</total_tokens>"
_ANY_MARK = re.compile(rf"\A{_MARK}\s{{0,4}}|\s{{0,4}}{_MARK}")
_MARK_ALONE = re.compile(rf"\s*{_MARK}\s*")


def stable_system(text: str) -> str:
    """A system text without a billing header and marks of tokens; empty if there is nothing else."""
    return _ANY_MARK.sub("", _BILLING.sub("", text))


def stable_user(text: str) -> str:
    """A user's text; empty if it is only a mark of tokens."""
    return "" if _MARK_ALONE.fullmatch(text) else text
