"""The pages that mkdocs makes from elsewhere: README, command line, tutorials as notebooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

README = Path(__file__).parent.parent / "README.md"
OUTSIDE = ("[examples](examples/)", "[contributing](CONTRIBUTING.md)")


def on_page_markdown(markdown: str, *, page: Any, **unused: Any) -> str:
    """What mkdocs calls with the text of each page."""
    makers = {"index.md": home, "cli.md": command_line}
    place = page.file.src_uri
    if place in makers:
        return makers[place]()
    if place.startswith("tutorials/"):
        title, _, rest = markdown.partition("\n")
        return f"{title}\n\n[As a notebook]({Path(place).stem}.ipynb){{ download }}\n{rest}"
    return markdown


def on_files(files: Any, *, config: Any, **unused: Any) -> Any:
    """What mkdocs calls with all files: each tutorial once more, as a notebook beside its page."""
    import jupytext
    from mkdocs.structure.files import File

    for page in (Path(config["docs_dir"]) / "tutorials").glob("*.md"):
        notebook = jupytext.read(page)
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        text = jupytext.writes(notebook, fmt="ipynb")
        files.append(File.generated(config, f"tutorials/{page.stem}.ipynb", content=text))
    return files


def home() -> str:
    """The README, with links that lead inside of the site."""
    text = README.read_text("utf-8").replace("](docs/", "](")
    for link in OUTSIDE:
        text = text.replace(link, f"`{link.partition('(')[2].rstrip(')')}`")
    return text


def command_line() -> str:
    """Every command, those of plug-ins too, with its options."""
    from click import Context
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from graftlib.cli import plugins
    from graftlib.cli.app import app

    group: Any = get_command(app)
    group.commands |= {name: plugins.load(name) for name in group.plug_ins}
    context = Context(group, info_name="graftlib")
    return str(get_docs_for_click(obj=group, ctx=context, name="graftlib", title="Command line"))
