"""A tree holds every layer once, and folds only what is built alike."""

from hypothesis import given
from hypothesis import strategies as st

from graftlib.view.tree import READABLE, WIDEST, build_tree

pieces = st.sampled_from(["a", "b", "0", "1", "2", "", "x y"])
names = st.lists(pieces, min_size=1, max_size=4).map(".".join)


@given(st.lists(names, min_size=1, max_size=30, unique=True))
def test_every_layer_is_one_leaf_whatever_the_names(standin, layers):
    tree = build_tree(standin.by_hand("M", {name: {} for name in layers}))
    leaves = [node.path for node in tree.nodes if node.form == "layer"]
    assert sorted(leaves) == sorted(layers)
    assert all(tree.nodes[i].path == name for name, i in tree.leaf_of.items())
    for i, node in enumerate(tree.nodes[1:], 1):
        assert node.parent < i
        assert i in tree.nodes[node.parent].children


@given(st.integers(1, 9), st.integers(1, 5), st.booleans())
def test_blocks_built_alike_are_folded_and_others_are_not(standin, repeats, size, odd):
    layers = {f"blocks.{i}.{j}": {"weight": (4, 4)} for i in range(repeats) for j in range(size)}
    if odd:
        layers["blocks.odd.0"] = {"weight": (5, 5)}
    tree = build_tree(standin.by_hand("M", layers))
    folds = [node for node in tree.nodes if node.form == "fold"]
    assert [fold.repeats for fold in folds] == ([repeats] if repeats > 1 else [])
    assert tree.nodes[0].elements == sum(
        n * m for owned in layers.values() for n, m in owned.values()
    )


def test_another_shape_inside_a_block_is_not_folded(standin):
    layers = {"0.fc": {"weight": (4, 4)}, "1.fc": {"weight": (4, 5)}}
    assert not [n for n in build_tree(standin.by_hand("M", layers)).nodes if n.form == "fold"]


def test_running_numbers_of_ops_do_not_keep_blocks_apart(standin):
    layers = {
        f"{i}.{name}": owned
        for i in range(3)
        for name, owned in ((f"relu_{i}", {}), ("fc", {"weight": (4, 4)}))
    }
    assert [
        n.repeats for n in build_tree(standin.by_hand("M", layers)).nodes if n.form == "fold"
    ] == [3]


def test_tied_parameters_count_once(standin):
    graph = standin.by_hand("M", {"a": {"weight": (4, 4)}, "b": {}})
    graph.held.append(standin.parameter("b.weight", (4, 4), tied_to="a.weight"))
    assert build_tree(graph).nodes[0].elements == 16


def test_the_start_is_readable(standin):
    layers = {
        f"s{i}.b{j}.{'c' * (j + 1)}{k}": {"weight": (i + 1, j + 1)}
        for i in range(4)
        for j in range(5)
        for k in range(9)
    }
    tree = build_tree(standin.by_hand("M", layers))
    drawn = [n for n in tree.nodes[1:] if tree.nodes[n.parent].open]
    assert 4 <= len(drawn) <= READABLE


def test_a_parameter_that_no_layer_reads_ends_at_its_module(standin):
    tree = build_tree(standin.by_hand("M", {"a.b": {}, "c": {}}))
    assert tree.nodes[tree.node_of(standin.parameter("a.unread.weight", (2, 2)))].path == "a"
    assert tree.node_of(standin.parameter("gone.weight", (2, 2))) == 0


@given(st.integers(1, 120), st.integers(1, 4), st.booleans())
def test_no_node_has_too_many_children_and_the_start_is_small(standin, repeats, period, unlike):
    shape = (lambda i: (4, i + 1)) if unlike else (lambda i: (4, 4))
    names = [(f"{'abcd'[j]}.{i}", shape(i)) for i in range(repeats) for j in range(period)]
    graph = standin.by_hand("M", {name: {"weight": size} for name, size in names})
    tree = build_tree(graph)
    assert all(len(node.children) <= WIDEST for node in tree.nodes)
    assert sum(tree.nodes[node.parent].open for node in tree.nodes[1:]) <= WIDEST + 3
    leaves = [node.path for node in tree.nodes if node.form == "layer"]
    assert leaves == [name for name, _ in names]  # in the order of execution, whatever is cut


def test_what_alternates_without_feeding_back_stays_whole(standin):
    graph = standin.by_hand(
        "M", {n: {} for n in ("a.0", "b.0", "a.1", "b.1")}, [("a.0", "a.1"), ("b.0", "b.1")]
    )
    assert [node.path for node in build_tree(graph).nodes if node.form == "module"] == ["a", "b"]
