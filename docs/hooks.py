"""For mkdocs: links to files of the repository that are no pages, and pictures there, become the files' names."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"!?\[[^\]]+\]\(\.\./([^)#]+)[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    return OUTSIDE.sub(r"`\1`", markdown)
