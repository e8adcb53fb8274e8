import importlib.util
import sys
from pathlib import Path

import pytest


def _load():
    spec = importlib.util.spec_from_file_location(
        "view_standin", Path(__file__).with_name("standin.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["view_standin"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def standin():
    """Layer graphs by hand."""
    return sys.modules.get("view_standin") or _load()


@pytest.fixture
def opened(chromium, tmp_path):
    """Open a view from the disk; everything that the page complains of or asks for fails the test."""
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    troubles, asked = [], []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))

    def open_view(shown):
        path = shown.save(tmp_path / "x.html")
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        asked[:] = [url for url in asked if url != path.as_uri()]
        return page

    yield open_view
    page.close()
    assert troubles == []
    assert asked == []


@pytest.fixture(scope="session")
def until():
    """Wait for what a page's script works out."""
    return _until


@pytest.fixture
def hostile():
    """Names that would be markup, script or a template if anybody read them so."""
    return [
        "<script>alert(1)</script>",
        "</script><b onclick=alert(2)>",
        "\"'<img src=x onerror=alert(3)>",
        "a\u2028b",
        "{{7*7}}",
    ]


def _until(page, expression, argument=None):
    """Wait until it holds. Playwright's own waiting is text that is run as code, which the page's policy stops."""
    for _ in range(400):
        if page.evaluate(expression, argument):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never came true: {expression}")
