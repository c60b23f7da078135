"""Writes the tables of parameters in docs/api.md: `python -m tests.tools.api_tables`."""

import re
from pathlib import Path

from distaff.server.protocol.openapi.meanings import ROUTES, table

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def filled(page: str) -> str:
    """The page with every table as the code has it."""
    for route in ROUTES:
        pattern = rf"(<!-- parameters of {re.escape(route)} -->\n).*?(<!-- end -->)"
        page = re.sub(pattern, lambda match, r=route: match[1] + table(r) + match[2], page, flags=re.S)
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
