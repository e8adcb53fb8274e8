"""Rules become pairs; what cannot be paired is refused with a way out that works."""

import pytest
import torch

from graftlib.errors import GraftError, MatchError, ViewError
from graftlib.graph.parameter import Part
from graftlib.match import Mapping


@pytest.fixture
def teacher(make):
    """Four wide blocks behind an embedding, with a head tied to it."""
    return make.graph(
        "Teacher",
        [
            make.weight("embed.weight", (50, 8), "embedding", depth=0.0),
            *make.blocks(4, 8),
            make.packed("attn.in_proj_weight", 8, 2),
            make.weight("attn.in_proj_bias", (24,), "bias", "bias"),
            make.weight("norm.weight", (8,), "norm", "gain", 0.9),
            make.weight("head.weight", (50, 8), depth=1.0, tied_to="embed.weight"),
            make.weight("unused.weight", (3, 8), depth=None),
            make.weight("position", (1, 7, 8), "other"),
        ],
    )


@pytest.fixture
def student(make):
    """Two narrow blocks and a convolution."""
    return make.graph(
        "Student",
        [
            make.weight("stem.weight", (4, 3, 2, 2), "conv", depth=0.0),
            *make.blocks(2, 4, "layers"),
            *make.separate("attn", 4),
            make.weight("head.weight", (10, 4), depth=1.0),
            make.weight("head.bias", (10,), "bias", "bias", 1.0),
        ],
    )


@pytest.fixture
def mapping(teacher, student):
    return Mapping(teacher, student)


def addresses(mapping):
    return [(pair.source.address, pair.target.address) for pair in mapping.pairs]


# --- patterns ------------------------------------------------------------------------------------------------------


def test_a_module_means_its_weight(mapping):
    mapping.link("blocks.0.fc1", "head")
    assert addresses(mapping) == [("blocks.0.fc1.weight", "head.weight")]
    assert len(mapping) == 1


def test_equal_captures_pair(mapping):
    mapping.link("blocks.{i}.fc1", "layers.{i}.fc1")
    assert addresses(mapping) == [
        (f"blocks.{i}.fc1.weight", f"layers.{i}.fc1.weight") for i in (0, 1)
    ]
    assert "no partner for 2 on the source side: 'blocks.2.fc1.weight'" in str(mapping)


def test_captures_of_a_regular_expression_pair(mapping):
    mapping.link(
        r"re:blocks\.(?P<i>[13])\.fc(?P<j>\d)\.weight", r"re:layers\.(?P<i>\d)\.fc(?P<j>\d)\.weight"
    )
    assert addresses(mapping) == [
        (f"blocks.1.fc{j}.weight", f"layers.1.fc{j}.weight") for j in (1, 2)
    ]


def test_a_name_captured_on_one_side_only_is_a_wildcard(mapping):
    mapping.link("blocks.{i}.fc{j}", "layers.{i}.fc1", pair="all")
    assert addresses(mapping) == [
        (f"blocks.{i}.fc{j}.weight", f"layers.{i}.fc1.weight") for i in (0, 1) for j in (1, 2)
    ]


def test_one_source_serves_many_targets(mapping):
    mapping.link("blocks.3.fc1", "layers.*.fc1")
    assert addresses(mapping) == [("blocks.3.fc1.weight", f"layers.{i}.fc1.weight") for i in (0, 1)]


def test_equal_counts_pair_in_order(mapping):
    mapping.link("blocks.*.fc1", "layers.*")
    assert addresses(mapping) == [
        ("blocks.0.fc1.weight", "layers.0.fc1.weight"),
        ("blocks.1.fc1.weight", "layers.0.fc2.weight"),
        ("blocks.2.fc1.weight", "layers.1.fc1.weight"),
        ("blocks.3.fc1.weight", "layers.1.fc2.weight"),
    ]


def test_nearest_in_depth(mapping):
    mapping.link("blocks.*.fc1", "layers.*.fc1", pair="nearest")
    # Depths 1/8 3/8 5/8 7/8 and 1/4 3/4: as near to either neighbour, so the first.
    assert addresses(mapping) == [
        ("blocks.0.fc1.weight", "layers.0.fc1.weight"),
        ("blocks.2.fc1.weight", "layers.1.fc1.weight"),
    ]


def test_all_gives_a_target_several_sources(mapping):
    mapping.link("blocks.*.fc1", "head", pair="all")
    assert [target for _, target in addresses(mapping)] == ["head.weight"] * 4


def test_depth_kind_and_role_narrow_both_sides(mapping):
    mapping.link("*", "*", kind="linear", role="weight", depth=(0.74, 0.91))
    assert addresses(mapping) == [
        ("blocks.3.fc1.weight", "layers.1.fc1.weight"),
        ("blocks.3.fc2.weight", "layers.1.fc2.weight"),
    ]
    for pair in mapping.pairs:
        for parameter in (pair.source, pair.target):
            assert (parameter.kind, parameter.role) == ("linear", "weight")
            assert 0.74 <= parameter.depth <= 0.91


def test_a_role_is_a_glob(mapping):
    mapping.link("attn.in_proj_weight::query", "attn.*", role="attention.query")
    assert addresses(mapping) == [("attn.in_proj_weight::query", "attn.query.weight")]


def test_a_part_applies_to_every_hit(make):
    layers = [make.packed(f"h.{i}.attn.weight", 4, 2) for i in range(3)]
    graph, other = make.graph("A", layers), make.graph("B", layers)
    mapping = Mapping(graph, other).link("h.{i}.attn::value.head[1]", "h.{i}.attn::key.head[0]")
    assert addresses(mapping) == [
        (f"h.{i}.attn.weight::value.head[1]", f"h.{i}.attn.weight::key.head[0]") for i in range(3)
    ]


def test_hits_without_the_part_are_passed_over_and_counted(mapping):
    mapping.link("attn.*::value", "attn.value")
    assert addresses(mapping) == [("attn.in_proj_weight::value", "attn.value.weight")]
    mapping = Mapping(mapping.source, mapping.target).link("*::value", "attn.value")
    assert "no part 'value'" in str(mapping)


def test_a_tied_parameter_is_its_first_name(mapping):
    mapping.link("head", "head")
    assert addresses(mapping) == [("embed.weight", "head.weight")]
    assert "'embed.weight' stands for 'head.weight', tied to it" in str(mapping)


def test_tied_parameters_count_once(mapping):
    mapping.link("re:(embed|head).weight", "stem")
    assert addresses(mapping) == [("embed.weight", "stem.weight")]
    assert "1 tied to another hit" in str(mapping)


def test_calls_chain_and_directions_are_kept(mapping):
    mapping.link("blocks.0.fc1", "head", direction="backward").link(
        "blocks.1.fc1", "stem", direction="both"
    )
    assert [pair.direction for pair in mapping.pairs] == ["backward", "both"]
    assert addresses(mapping) == [
        ("blocks.0.fc1.weight", "head.weight"),
        ("blocks.1.fc1.weight", "stem.weight"),
    ]


def test_a_model_may_be_linked_to_itself(teacher):
    mapping = Mapping(teacher, teacher).link("blocks.0.fc1", "blocks.3.fc1", direction="both")
    assert len(mapping) == 1


def test_disjoint_parts_of_one_parameter_may_be_linked(teacher):
    mapping = Mapping(teacher, teacher)
    mapping.link("attn.in_proj_weight::query", "attn.in_proj_weight::key", direction="both")
    assert len(mapping) == 1


def test_an_empty_mapping_is_there(mapping):
    assert mapping
    assert len(mapping) == 0
    assert mapping.pairs == ()


# --- the report ----------------------------------------------------------------------------------------------------


def test_the_report_shows_every_rule_pair_and_passed_over_hit(mapping):
    mapping.link("blocks.3.*", "layers.1.*", direction="both").link("blocks.0.fc1", "stem")
    assert str(mapping).splitlines() == [
        "Teacher -> Student: 3 pairs",
        "  blocks.3.* <-> layers.1.*  (5 source hits, 5 target hits, 2 pairs)",
        "    source: 3 skipped: 2 bias (no 2-D view), 1 norm (no 2-D view)",
        "    target: 3 skipped: 2 bias (no 2-D view), 1 norm (no 2-D view)",
        "    blocks.3.fc1.weight  32×8  as 32×8  <->  layers.1.fc1.weight  16×4  as 16×4",
        "    blocks.3.fc2.weight  8×32  as 8×32  <->  layers.1.fc2.weight  4×16  as 4×16",
        "  blocks.0.fc1 -> stem  (1 source hit, 1 target hit, 1 pair)",
        "    blocks.0.fc1.weight  32×8  as 32×8  ->  stem.weight  4×3×2×2  as 4×12",
    ]


def test_an_empty_report_says_what_to_do(mapping):
    assert str(mapping).splitlines() == [
        "Teacher -> Student: 0 pairs",
        "  nothing is linked yet: use link(source, target) or auto()",
    ]
    assert repr(mapping) == "<Mapping Teacher -> Student: 0 pairs>"


def test_names_are_untrusted_text(make):
    graph = make.graph(
        "A\x1b[2J", [make.weight("a\x1b[31m\nb.weight", (2, 2)), make.weight("c.weight", (2, 2))]
    )
    mapping = Mapping(graph, make.graph("B", [make.weight("c.weight", (2, 2))]))
    mapping.link("a*", "c")
    assert "\x1b" not in str(mapping)
    assert len(str(mapping).splitlines()) == 3
    for source in ("a\x1b[31m", "a*", "\x1b[31mx"):
        with pytest.raises(MatchError) as error:
            mapping.link(source, "c")
        assert "\x1b" not in str(error.value).replace(mapping.source.name, "")


# --- what is refused, and the fix that works -----------------------------------------------------------------------


def refused(mapping, *args, error=MatchError, **kwargs):
    """The error of a link; whatever went wrong, the mapping is as it was."""
    before = mapping.pairs
    with pytest.raises(error) as caught:
        mapping.link(*args, **kwargs)
    assert type(caught.value) is error
    assert mapping.pairs == before
    return caught.value


def apply(fix, mapping):
    """Run the call that an error advises."""
    assert fix.startswith("mapping.link("), fix
    before = len(mapping)
    eval(fix, {"mapping": mapping})
    assert len(mapping) > before


@pytest.mark.parametrize(
    ("source", "target", "nearest"),
    [
        ("blocks.0.fc3", "head", "blocks.0.fc"),
        ("bloks.{i}.fc1", "layers.{i}.fc1", "blocks."),
        ("blocks.*.mlp.fc1", "layers.*.fc1", "fc1"),
        ("blocks.{i}.fc1", "layer.{i}.fc1", "layers."),
        ("re:bloks.*fc1", "head", "blocks."),
        ("nothing at all like it", "head", "'"),
        ("attn.in_prj_weight::query", "attn.query", "in_proj"),
        ("embedding", "haed", "head"),
        ("blocks.*", "haed", "head"),
        ("nix", "nix", "'"),
    ],
)
def test_a_pattern_that_hits_nothing_names_the_nearest_and_a_fix(mapping, source, target, nearest):
    error = refused(mapping, source, target)
    assert "matches nothing in" in error.what
    assert nearest in " ".join(error.near)
    apply(error.fix, mapping)


def test_both_sides_are_reported_at_once(mapping):
    error = refused(mapping, "nix", "nox")
    assert "'nix' matches nothing in Teacher" in error.what
    assert "'nox' matches nothing in Student" in error.what


def test_a_repaired_pattern_keeps_its_wildcards(mapping):
    error = refused(mapping, "bloks.{i}.fc1", "layers.{i}.fc1")
    assert error.fix == "mapping.link('blocks.{i}.fc1.weight', 'layers.{i}.fc1')"


def test_a_pattern_that_is_not_well_formed_is_refused(mapping):
    assert "not well formed" in refused(mapping, "re:(", "head").what


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("blocks.*.fc1", "layers.*.fc1"),
        ("blocks.*.fc1", "head"),
        ("blocks.{i}.fc*", "layers.{i}.fc1"),
    ],
)
def test_counts_that_cannot_be_paired_list_both_sides_and_repairs(mapping, source, target):
    error = refused(mapping, source, target)
    assert "'blocks.0.fc1.weight'" in error.where["source"]
    assert ".weight'" in error.where["target"]
    for way in ("pair='nearest'", "pair='all'", "{i}"):
        assert way in error.why
    assert "pair='nearest'" in error.fix
    apply(error.fix, mapping)


def test_order_needs_equal_counts(mapping):
    apply(refused(mapping, "blocks.0.fc1", "layers.*.fc1", pair="order").fix, mapping)


def test_captures_without_an_equal_pair_are_listed(mapping):
    error = refused(mapping, r"re:blocks\.(?P<i>[23])\.fc1", "layers.{i}.fc1")
    assert error.where == {"source": "'i=2', 'i=3'", "target": "'i=0', 'i=1'"}
    apply(error.fix, mapping)
    assert addresses(mapping)[0] == ("blocks.2.fc1.weight", "layers.0.fc1.weight")


def test_nearest_passes_over_what_is_never_read(mapping):
    mapping.link("re:(unused|blocks.0.fc1)", "layers.*.fc1", pair="nearest")
    assert [source for source, _ in addresses(mapping)] == ["blocks.0.fc1.weight"] * 2
    assert "1 skipped on the source side, never read: 'unused.weight'" in str(mapping)


def test_nearest_needs_a_depth(mapping):
    error = refused(mapping, "unused", "layers.*.fc1", pair="nearest")
    assert "'unused.weight'" in str(error)
    apply(error.fix, mapping)


@pytest.mark.parametrize("source", ["blocks.0.fc1.bias", "norm.weight", "norm", "position"])
def test_an_exact_name_without_a_view_is_a_view_error(mapping, source):
    error = refused(mapping, source, "head", error=ViewError)
    assert "has no 2-D view" in error.what
    assert error.why
    assert error.near
    apply(error.fix, mapping)


def test_an_exact_name_without_the_part_lists_the_parts(mapping):
    error = refused(mapping, "attn.in_proj_weight::quer", "head", error=ViewError)
    assert "'query'" in error.near
    apply(error.fix, mapping)


def test_wildcards_that_hit_no_matrix_say_what_they_hit(mapping):
    error = refused(mapping, "blocks.*.bias", "head")
    assert error.where["source"] == "8 skipped: 8 bias (no 2-D view)"
    assert "one number per unit" in error.why
    apply(error.fix, mapping)


@pytest.mark.parametrize(
    "filters",
    [
        {"kind": "conv"},
        {"role": "attention.query"},
        {"depth": (0.9, 1.0)},
        {"kind": "conv", "role": "attention.key", "depth": (0.0, 0.1)},
    ],
)
def test_filters_that_leave_nothing_say_so(mapping, filters):
    error = refused(mapping, "blocks.{i}.fc1", "layers.{i}.fc1", **filters)
    assert "leaves no parameter to link" in error.what
    assert "is" in error.where["source"]
    apply(error.fix, mapping)


def test_a_fix_for_two_wildcards_does_not_pair_everything_with_one(mapping):
    error = refused(mapping, "*", "*", kind="linear", depth=(0.45, 0.46))
    assert error.fix == "mapping.link('*', '*', kind='linear', pair='nearest')"
    assert error.why is None
    apply(error.fix, mapping)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ({"direction": "forwards"}, "'forward'"),
        ({"direction": None}, None),
        ({"pair": "nearly"}, "'nearest'"),
        ({"kind": "conv2d"}, "'conv'"),
        ({"depth": (1.0, 0.0)}, None),
        ({"depth": 0.5}, None),
    ],
)
def test_words_that_mean_nothing_are_refused(mapping, wrong, near):
    error = refused(mapping, "blocks.0.fc1", "head", **wrong)
    assert near is None or near in error.near
    assert "use " in error.fix


def test_the_same_pair_twice_is_refused(mapping):
    mapping.link("blocks.0.fc1", "head")
    error = refused(mapping, "blocks.0.*", "head.weight", kind="linear", pair="all")
    assert "is there twice" in error.what
    assert "direction='both'" in refused(mapping, "blocks.0.fc1", "head", direction="backward").fix
    once = Mapping(mapping.source, mapping.target).link("blocks.0.fc1", "head", direction="both")
    assert len(once) == 1


def test_a_link_from_a_parameter_to_itself_is_refused(teacher):
    mapping = Mapping(teacher, teacher)
    for source, target in [
        ("blocks.0.fc1", "blocks.0.fc1"),
        ("embed", "head"),
        ("attn.in_proj_weight", "attn.in_proj_weight::key"),
        ("attn.in_proj_weight::key.head[0]", "attn.in_proj_weight::key"),
    ]:
        assert "links a parameter to itself" in refused(mapping, source, target).what


def test_two_graphs_that_share_a_tensor_are_told(teacher, student):
    student.tensors["head.weight"] = teacher.tensors["embed.weight"]
    assert "itself" in refused(Mapping(teacher, student), "embed", "head").what


@pytest.mark.parametrize(
    ("first", "then", "together"),
    [
        ("", "::query", False),
        ("::query", "", False),
        ("::query", "::query.head[1]", False),
        ("::query", "::key", True),
        ("::query", "::query", True),
        ("", "", True),
    ],
)
def test_a_unit_is_written_through_one_address(student, teacher, first, then, together):
    mapping = Mapping(student, teacher).link("attn.query", f"attn.in_proj_weight{first}")
    if together:
        assert len(mapping.link("attn.key", f"attn.in_proj_weight{then}")) == 2
        return
    error = refused(mapping, "attn.key", f"attn.in_proj_weight{then}")
    assert "would both be written" in error.what
    apply(error.fix, mapping)


def test_only_writes_exclude_each_other(teacher, student):
    """Reading the whole and a part is fine; writing both, by `backward`, is not."""
    mapping = Mapping(teacher, student)
    mapping.link("attn.in_proj_weight", "attn.query").link("attn.in_proj_weight::key", "attn.key")
    mapping.link("attn.in_proj_weight", "head", direction="backward")
    error = refused(mapping, "attn.in_proj_weight::key", "stem", direction="both")
    assert "would both be written" in error.what


def test_parts_of_two_axes_overlap(make):
    parts = {"rows": Part(0, (0, 2)), "columns": Part(1, (1,)), "more": Part(0, (1, 2))}
    source = make.graph("A", [make.weight("a.weight", (2, 2))])
    target = make.graph("B", [make.weight("b.weight", (3, 2), parts=parts)])
    for other in ("columns", "more"):
        mapping = Mapping(source, target).link("a", "b::rows")
        with pytest.raises(MatchError, match="share units"):
            mapping.link("a", f"b::{other}")


def test_empty_parameters_are_passed_over(make):
    graph = make.graph("A", [make.weight("a.weight", (0, 2)), make.weight("b.weight", (2, 2))])
    mapping = Mapping(graph, make.graph("B", [make.weight("c.weight", (2, 2))])).link("*", "c")
    assert addresses(mapping) == [("b.weight", "c.weight")]
    assert "1 no elements" in str(mapping)


def test_a_module_in_place_of_a_graph_is_refused(student):
    with pytest.raises(MatchError, match="takes layer graphs, and source is a Linear") as error:
        Mapping(torch.nn.Linear(2, 2), student)
    assert "trace" in error.value.fix


def test_every_error_is_of_the_family(mapping):
    for attempt in ("nix", "re:(", "norm", "blocks.*::query", "{0}", "", "::", "a::b::c", "re:"):
        with pytest.raises(GraftError):
            mapping.link(attempt, "head")
    assert mapping.pairs == ()
