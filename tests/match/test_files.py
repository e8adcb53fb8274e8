"""A mapping is data: it comes back from its file, and a file of other models is refused."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from graftlib.errors import MappingError
from graftlib.match import Mapping


@pytest.fixture
def teacher(make):
    return make.graph("Teacher", [*make.blocks(3, 8), make.packed("attn.in_proj_weight", 8, 2)])


@pytest.fixture
def student(make):
    return make.graph("Student", [*make.blocks(3, 4), *make.separate("attn", 4)])


@pytest.fixture
def mapping(teacher, student):
    mapping = Mapping(teacher, student).link("blocks.{i}.fc1", "blocks.{i}.fc1", direction="both")
    mapping.link("attn.in_proj_weight::query", "attn.query", direction="backward")
    return mapping.auto(limit=1)


@pytest.fixture
def saved(mapping, tmp_path):
    mapping.save(tmp_path / "map.yaml")
    return tmp_path / "map.yaml"


def refused(path, source, target):
    with pytest.raises(MappingError) as error:
        Mapping.load(path, source, target)
    return error.value


def test_a_mapping_comes_back_from_its_file(mapping, saved):
    loaded = Mapping.load(saved, mapping.source, mapping.target)
    assert loaded.pairs == mapping.pairs
    assert [pair.source.selection for pair in loaded.pairs] == [
        pair.source.selection for pair in mapping.pairs
    ]
    assert str(loaded).splitlines()[:2] == [
        "Teacher -> Student: 5 pairs",
        "  loaded from map.yaml  (5 pairs)",
    ]
    loaded.save(saved)
    assert Mapping.load(saved, mapping.source, mapping.target).pairs == mapping.pairs


def test_an_empty_mapping_comes_back(teacher, student, tmp_path):
    Mapping(teacher, student).save(tmp_path / "map.yaml")
    assert len(Mapping.load(tmp_path / "map.yaml", teacher, student)) == 0


def test_a_loaded_mapping_can_be_linked_further(mapping, saved):
    loaded = Mapping.load(saved, mapping.source, mapping.target)
    assert len(loaded.link("blocks.0.fc2", "attn.key")) == len(mapping) + 1


def test_the_file_is_for_people(make, tmp_path):
    source = make.graph("Teacher", [make.weight("a.weight", (8, 4, 3, 3), "conv")])
    target = make.graph("Student", [make.weight("b.weight", (2, 4))])
    Mapping(source, target).link("a", "b").save(tmp_path / "map.yaml")
    assert (tmp_path / "map.yaml").read_text() == (
        "format: graftlib mapping\n"
        "version: 1\n"
        "source:\n"
        "  model: Teacher\n"
        "  parameters:\n"
        "    a.weight:\n"
        "      shape:\n"
        "      - 8\n"
        "      - 4\n"
        "      - 3\n"
        "      - 3\n"
        "      kind: conv\n"
        "target:\n"
        "  model: Student\n"
        "  parameters:\n"
        "    b.weight:\n"
        "      shape:\n"
        "      - 2\n"
        "      - 4\n"
        "      kind: linear\n"
        "pairs:\n"
        "- source: a.weight\n"
        "  target: b.weight\n"
        "  direction: forward\n"
        "  rule: a -> b\n"
    )


@given(
    st.lists(
        st.text(st.characters(exclude_characters=".:*?[]{}"), min_size=1), min_size=2, max_size=2
    )
)
def test_any_name_comes_back(make, tmp_path_factory, names):
    """Names are untrusted: they may look like YAML, like numbers, or like nothing at all."""
    source, target = (make.graph(name, [make.weight(f"{name}.weight", (2, 2))]) for name in names)
    mapping = Mapping(source, target)
    try:
        mapping.link("*", "*")
    except Exception:  # names with odd spaces may be patterns of nothing
        return
    path = tmp_path_factory.mktemp("names") / "map.yaml"
    mapping.save(path)
    assert Mapping.load(path, source, target).pairs == mapping.pairs


# --- files that cannot be written or read --------------------------------------------------------------------------


def test_a_path_that_cannot_be_written_leaves_nothing(mapping, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in ("missing/map.yaml", "file/map.yaml", "folder"):
        with pytest.raises(MappingError, match="cannot be written") as error:
            mapping.save(tmp_path / path)
        assert error.value.why
        assert error.value.fix
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_failed_write_leaves_the_old_file(mapping, saved, monkeypatch):
    before = saved.read_text()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(MappingError, match="No space left"):
        mapping.save(saved)
    assert saved.read_text() == before
    assert [path.name for path in saved.parent.iterdir()] == ["map.yaml"]


def test_a_path_may_be_text(mapping, tmp_path):
    mapping.save(str(tmp_path / "map.yaml"))
    assert len(Mapping.load(str(tmp_path / "map.yaml"), mapping.source, mapping.target)) == len(
        mapping
    )


def test_a_missing_file_is_refused(teacher, student, tmp_path):
    assert "cannot be read" in refused(tmp_path / "nix.yaml", teacher, student).what
    assert "cannot be read" in refused(tmp_path, teacher, student).what


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"just words",
        b"[1, 2",
        b"a: *nobody",
        b"\x80\x81",
        b"\x00",
        b"[" * 300,
        b"!!python/object/apply:os.system [echo]",
        b"format: graftlib mapping\nversion: 2\n",
        b"format: graftlib mapping\nversion: true\n",
        b"format: graftlib mapping\nversion: 1\n",
        b"format: graftlib mapping\nversion: 1\nsource: {model: Teacher}\ntarget: 3\npairs: 4\n",
    ],
)
def test_a_malformed_file_is_refused(teacher, student, tmp_path, content):
    (tmp_path / "map.yaml").write_bytes(content)
    error = refused(tmp_path / "map.yaml", teacher, student)
    assert "map.yaml" in error.what
    assert error.fix


def edited(path, edit):
    content = yaml.safe_load(path.read_text())
    edit(content)
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (
            lambda c: c["pairs"].append("a -> b"),
            "pairs[5]  expected mapping of names, got text: 'a -> b'",
        ),
        (lambda c: c["pairs"][0].pop("rule"), "pairs[0].rule  is missing"),
        (
            lambda c: c["pairs"][0].update(source=3),
            "pairs[0].source  expected text, got whole number: 3",
        ),
        (
            lambda c: c["pairs"][0].update(direction="sideways"),
            "pairs[0].direction  expected 'forward' or 'backward' or 'both', got 'sideways'",
        ),
        (lambda c: c["pairs"][0].update(target="nix.weight"), "'nix.weight', which 'target'"),
        (lambda c: c.update(pairs={}), "pairs  expected list, got mapping"),
        (lambda c: c.pop("source"), "source  is missing"),
        (lambda c: c["target"].update(parameters=[]), "target.parameters  expected mapping"),
        (
            lambda c: c["target"]["parameters"].update(x={"shape": [1]}),
            "target.parameters['x'].kind  is missing",
        ),
        (
            lambda c: c["target"]["parameters"].update(x={"shape": ["1"], "kind": "conv"}),
            "['x'].shape[0]",
        ),
        (lambda c: c["target"]["parameters"].update({"x": 3}), "target.parameters['x']  expected"),
        (lambda c: c["target"]["parameters"].update({3: {"shape": [], "kind": "a"}}), "no '3'"),
    ],
)
def test_every_fault_of_a_file_is_named(mapping, saved, edit, what):
    error = refused(edited(saved, edit), mapping.source, mapping.target)
    assert what in re.sub(" {2,}", "  ", str(error))
    assert error.fix


def test_a_mapping_of_other_models_lists_all_that_differs(saved, make):
    source = make.graph("Teacher", [*make.blocks(2, 8), make.packed("attn.in_proj_weight", 16, 2)])
    target = make.graph("Pupil", [*make.blocks(3, 4, "stages"), *make.separate("attn", 4)])
    error = refused(saved, source, target)
    assert "made for other models than Teacher and Pupil" in error.what
    found = "\n".join(error.differences)
    assert "source: there is no 'blocks.2.fc1.weight'; nearest 'blocks." in found
    assert "source: 'attn.in_proj_weight' is (48, 16), the file says (24, 8)" in found
    assert "target: the model is 'Pupil', the file says 'Student'" in found
    for i in range(3):
        assert f"target: there is no 'blocks.{i}.fc1.weight'; nearest 'stages." in found
    assert "attn.query" not in found, "what fits is not listed"


def test_another_kind_of_weight_is_another_model(make, tmp_path):
    one = make.graph("A", [make.weight("a.weight", (4, 4))])
    two = make.graph("A", [make.weight("a.weight", (4, 4), "embedding")])
    other = make.graph("B", [make.weight("b.weight", (4, 4))])
    Mapping(one, other).link("a", "b").save(tmp_path / "map.yaml")
    assert "is 'embedding', the file says 'linear'" in str(
        refused(tmp_path / "map.yaml", two, other)
    )


def test_swapped_models_are_refused(mapping, saved):
    assert "other models" in refused(saved, mapping.target, mapping.source).what


def test_the_advice_on_a_renamed_model_works(mapping, saved, make):
    mapping.target.name = "Pupil"
    assert "'model:' line" in str(refused(saved, mapping.source, mapping.target))
    saved.write_text(saved.read_text().replace("model: Student", "model: Pupil"))
    assert Mapping.load(saved, mapping.source, mapping.target).pairs == mapping.pairs


def test_a_sharded_model_keeps_its_name(mapping, saved):
    mapping.target.name = "FSDPStudent"
    assert len(Mapping.load(saved, mapping.source, mapping.target)) == len(mapping)


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda pairs: pairs.append({**pairs[0]}), "is there twice"),
        (lambda pairs: pairs[3].update(source="attn.in_proj_weight::quer"), "no part 'quer'"),
        (
            lambda pairs: pairs.append(
                {**pairs[3], "source": "attn.in_proj_weight", "direction": "both"}
            ),
            "would both be written",
        ),
    ],
)
def test_pairs_that_link_would_refuse_are_refused(mapping, saved, edit, what):
    path = edited(saved, lambda content: edit(content["pairs"]))
    assert what in str(refused(path, mapping.source, mapping.target))
