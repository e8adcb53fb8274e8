"""The site's first page is the README, with links that lead inside of the site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

README = Path(__file__).parent.parent / "README.md"
OUTSIDE = ("[examples](examples/)", "[contributing](CONTRIBUTING.md)")


def on_page_markdown(markdown: str, *, page: Any, **unused: Any) -> str:
    """What mkdocs calls with the text of each page."""
    if page.file.src_uri != "index.md":
        return markdown
    text = README.read_text("utf-8").replace("](docs/", "](")
    for link in OUTSIDE:
        text = text.replace(link, f"`{link.partition('(')[2].rstrip(')')}`")
    return text
