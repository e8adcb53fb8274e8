"""The page is one closed file: deterministic, hostile names included, and no word of it leaves the data element."""

import html
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftlib.errors import GraftError
from graftlib.view import view
from graftlib.view.data import embedded_json
from graftlib.view.page import LIBRARIES

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "\"'`&amp;",
    "line\u2028separator\u2029",
    "{{ 7*7 }}{% raw %}",
    "javascript:alert(1)",
    "back\\slash\x1b[2J",
]


def hostile_pair(standin):
    names = [name.replace(".", "") for name in HOSTILE]
    source = standin.by_hand("<b>Evil</b>", {name: {"weight": (2, 3)} for name in names})
    target = standin.by_hand(
        "Calm", {"a.b": {"weight": (2, 3)}, "a.c": {}, "d": {"weight": (2, 3)}}
    )
    pairs = tuple(
        standin.Pair(p, target.held[0], rule=name)
        for p, name in zip(source.held, names, strict=True)
    )
    return view(source, target, standin.Mapping(source, target, pairs))


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_embedded_json_comes_back_and_cannot_end_its_element(data):
    text = embedded_json(data)
    assert json.loads(text) == data
    assert not set("<>&\u2028\u2029") & set(text)


def test_lone_surrogates_can_be_written():
    embedded_json("\ud800").encode()
    assert json.loads(embedded_json("\ud800")) == "\ud800"


def test_hostile_names_stay_inside_the_data(standin):
    page = hostile_pair(standin).html
    outside = re.sub(r'(?s)<script type="application/json" id="data">.*?</script>', "", page)
    assert page.count("<script") == outside.count("<script") + 1
    assert "alert(1)" not in outside
    assert "onerror" not in outside
    assert "<b>Evil" not in page
    assert "&lt;b&gt;Evil&lt;/b&gt;" in outside  # the title, as text
    data = json.loads(re.search(r'(?s)id="data">(.*?)</script>', page)[1])
    assert HOSTILE[0] in data["words"]


def test_the_page_names_no_address_and_allows_only_itself(standin):
    page = hostile_pair(standin).html
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert policy.count("sha256-") == len(LIBRARIES) + 2
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert "sourceMappingURL" not in page
    for name in LIBRARIES:
        assert f"/*\n{name}\nCopyright" in page


def test_the_same_input_gives_the_same_bytes(standin):
    assert hostile_pair(standin).html == hostile_pair(standin).html


def test_save_writes_the_whole_file_or_none(standin, tmp_path, monkeypatch):
    shown = hostile_pair(standin)
    path = shown.save(tmp_path / "x.html")
    assert path.read_text(encoding="utf-8") == shown.html

    def full(*_):
        raise OSError(28, "No space left")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(GraftError, match="cannot be written"):
        shown.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.html"]
    assert path.read_text(encoding="utf-8") == shown.html


def test_a_missing_folder_is_an_error_with_a_fix(standin, tmp_path):
    with pytest.raises(GraftError, match="create the folder first"):
        hostile_pair(standin).save(tmp_path / "not" / "x.html")


def test_the_notebook_frame_is_sandboxed(standin):
    shown = hostile_pair(standin)
    frame = shown._repr_html_()
    assert 'sandbox="allow-scripts allow-downloads"' in frame
    assert html.unescape(re.search(r'srcdoc="([^"]*)"', frame)[1]) == shown.html


def test_view_takes_a_mapping_alone_and_refuses_another_models(standin):
    a, b = (standin.by_hand(name, {"l": {"weight": (2, 2)}}) for name in "ab")
    mapping = standin.Mapping(a, b, (standin.Pair(a.held[0], b.held[0]),))
    assert view(mapping).html == view(a, b, mapping).html
    assert view(a, mapping=mapping).html == view(a, b, mapping).html
    with pytest.raises(GraftError, match="another model") as caught:
        view(b, a, mapping)
    assert view(*eval(caught.value.fix.removeprefix("view"), {"mapping": mapping})).html
    with pytest.raises(GraftError, match="layer graphs"):
        view(a.model)


def test_vendored_files_have_versions_and_licences():
    from importlib.resources import files

    vendor = files("graftlib.view") / "vendor"
    listed = json.loads((vendor / "VERSIONS.json").read_text())
    assert {entry["file"] for entry in listed.values()} == {f"{name}.min.js" for name in LIBRARIES}
    for package, entry in listed.items():
        name = entry["file"].removesuffix(".min.js")
        assert "Copyright" in (vendor / f"{name}.LICENSE").read_text()
        if package.startswith("d3"):
            assert f"v{entry['version']} " in (vendor / entry["file"]).read_text()[:80]
