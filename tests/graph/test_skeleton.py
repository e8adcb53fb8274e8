"""What is kept of a model without its tensors."""

from __future__ import annotations

import torch
from torch import nn

from graftlib import trace
from graftlib.graph import structure
from graftlib.graph.skeleton import Skeleton, modules_of
from graftlib.surgery import prune


class Shared(nn.Module):
    """One module under two names, a slot without a module, and one weight under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.gone = None
        self.register_module("empty", None)
        self.again = self.first
        self.last = nn.Linear(4, 6)
        self.last.weight = self.first[0].weight

    def forward(self, x):
        return self.first(x) + self.again(x) + self.last(x)


def test_the_walk_is_that_of_named_modules():
    model = Shared()
    assert [*modules_of(model)] == [*model.named_modules()]
    every = [*model.named_modules(remove_duplicate=False)]
    assert [*modules_of(model, every_name=True)] == every
    assert len(every) > len([*modules_of(model)])  # the names differ in such a model


def test_parameters_are_those_of_named_parameters():
    model = Shared()
    kept = Skeleton.of(model)
    named = dict(model.named_parameters(remove_duplicate=False))
    assert [*kept.parameters] == [*named]
    for fqn, facts in kept.parameters.items():
        assert facts.shape == named[fqn].shape
        assert named[facts.origin] is named[fqn]
    assert kept.parameters["last.weight"].origin == "first.0.weight"
    assert kept.within("first") == ["first.0.weight", "first.0.bias"]


def test_records_are_of_the_model_as_it_was_traced():
    """They are made when they are asked for, after an edit too."""

    def model():
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()

    before, edited = trace(model(), torch.ones(1, 4)), trace(model(), torch.ones(1, 4))
    prune(edited, 0.5, inplace=True)
    assert [p.shape for p in edited.parameters()] == [p.shape for p in before.parameters()]
    assert edited.layers == before.layers
    again = trace(edited.model, torch.ones(1, 4))
    assert again.layers != before.layers  # the control: the edit would be seen


def test_a_copy_is_told_to_evaluate_only_where_that_does_something():
    told = []

    class Merges(nn.Linear):
        def train(self, mode=True):
            told.append(mode)
            return super().train(mode)

    model = nn.Sequential(Merges(2, 2)).eval()
    told.clear()
    structure.rebuild(model, structure.own)
    assert told == [False]
    half = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    half[1].training = True
    assert not any(m.training for m in structure.rebuild(half, structure.own).modules())
    assert half[1].training
