"""Recurrent modules: what an edit hands over runs on real tensors, or the edit is refused; kernels trust the sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from graftlib.errors import TraceError
from graftlib.graph import trace
from graftlib.graph.axes import check
from graftlib.graph.capture import capture
from graftlib.surgery import SurgeryError, permute, prune, widen

# torch says so whenever one runs on the CPU.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

KINDS = (nn.LSTM, nn.GRU, nn.RNN)


class Recurrent(nn.Module):
    """A linear layer before and behind; the first states are zeros of torch's, or the model's own."""

    def __init__(self, kind, layers=1, both=False, projected=0, own=False, first=True, bias=True):
        super().__init__()
        more = {"proj_size": projected} if projected else {}
        self.own, self.into = own, nn.Linear(5, 8)
        self.rnn = kind(8, 12, layers, batch_first=first, bidirectional=both, bias=bias, **more)
        self.head = nn.Linear((projected or 12) * (1 + both), 3)

    def forward(self, x):
        rnn, states = self.rnn, None
        if self.own:
            many = rnn.num_layers * (1 + rnn.bidirectional)
            batch = x.shape[0 if rnn.batch_first else 1]
            states = x.new_zeros(many, batch, rnn.proj_size or rnn.hidden_size)
            if isinstance(rnn, nn.LSTM):
                states = (states, x.new_zeros(many, batch, rnn.hidden_size))
        return self.head(rnn(self.into(x), states)[0])


class Packed(nn.Module):
    """Sequences of unequal length in one row."""

    def __init__(self, kind):
        super().__init__()
        self.into, self.rnn = nn.Linear(5, 8), kind(8, 12, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(24, 3)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(self.into(x), lengths, batch_first=True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])


class OwnSize(nn.Module):
    """Writes the size of its first state into its code."""

    def __init__(self):
        super().__init__()
        self.units = 16
        self.rnn = nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        state = x.new_zeros(4, x.size(0), self.units)
        return self.head(self.rnn(x, (state, state.clone()))[0][:, -1])


class Cells(nn.Module):
    """One step at a time, by cells that make their own first state."""

    def __init__(self):
        super().__init__()
        self.lstm, self.gru, self.head = nn.LSTMCell(5, 8), nn.GRUCell(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.gru(self.lstm(x)[0]))


def one_size(rnn):
    """(hidden sizes, projections) of all layers and directions."""
    gates = {"LSTM": 4, "GRU": 3}.get(rnn.mode, 1)
    named = dict(rnn.named_parameters())
    hidden = {t.shape[0] // gates for name, t in named.items() if "weight_hh" in name}
    return hidden, {t.shape[0] for name, t in named.items() if "weight_hr" in name}


@settings(max_examples=25)
@given(
    kind=st.sampled_from(KINDS),
    layers=st.integers(1, 3),
    both=st.booleans(),
    projected=st.sampled_from((0, 4)),
    own=st.booleans(),
    first=st.booleans(),
    bias=st.booleans(),
)
def test_a_pruned_one_runs_and_is_what_its_attributes_say(
    kind, layers, both, projected, own, first, bias
):
    """A share of everything: all layers and directions agree, and a module built anew takes the weights."""
    projected = projected if kind is nn.LSTM else 0
    model = Recurrent(kind, layers, both, projected, own, first, bias).eval()
    x = torch.randn(4, 6, 5)
    slim = prune(trace(model, (x,)), 0.5)
    assert one_size(slim.rnn) == ({6}, {2} if projected else set())
    again = Recurrent(kind, layers, both, projected, own, first, bias).eval()
    more = {"proj_size": 2} if projected else {}
    again.rnn = kind(
        4, slim.rnn.hidden_size, layers, batch_first=first, bidirectional=both, bias=bias, **more
    )
    again.into, again.head = nn.Linear(5, 4), nn.Linear((2 if projected else 6) * (1 + both), 3)
    again.load_state_dict(slim.state_dict())
    torch.testing.assert_close(again.eval()(x), slim(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_permuted_one_computes_the_same(kind):
    """Each layer and direction may have an order of its own..."""
    model, x = Recurrent(kind, 2, True).eval(), torch.randn(4, 6, 5)
    graph = trace(model, (x,))
    assert sum(each.free and each.size == 12 for each in graph.axis_classes) == 4
    torch.testing.assert_close(permute(graph, seed=1)(x), model(x))


def test_layers_of_one_module_cannot_have_sizes_of_their_own():
    """...but not a size of its own: refused before a kernel sees it, with the module and the weights named."""
    model, x = Recurrent(nn.LSTM, 2, True).eval(), torch.randn(4, 6, 5)
    graph = trace(model, (x,))
    hidden = [each for each in graph.axis_classes if each.free and each.size == 12]
    with pytest.raises(
        SurgeryError, match="layers and directions of 'rnn' share one hidden size"
    ) as error:
        prune(graph, {hidden[0]: 6})
    assert "weight_hh_l1_reverse" in str(error.value)
    with pytest.raises(SurgeryError, match="share one hidden size"):
        widen(graph, {hidden[1]: 16})
    # What the message advises works.
    assert prune(graph, dict.fromkeys(hidden, 6))(x).isfinite().all()


def test_a_projection_stays_narrower_than_what_it_projects():
    model, x = Recurrent(nn.LSTM, 1, False, 4).eval(), torch.randn(4, 6, 5)
    graph = trace(model, (x,))
    (hidden,) = [each for each in graph.axis_classes if each.free and each.size == 12]
    with pytest.raises(SurgeryError, match="must be narrower than the hidden size of 3"):
        prune(graph, {hidden: 3})
    assert prune(graph, {hidden: 5})(x).isfinite().all()


def test_a_size_in_the_code_is_refused_or_kept():
    model, x = OwnSize().eval(), torch.randn(4, 5, 8)
    graph = trace(model, (x,))
    with pytest.raises(SurgeryError):
        prune(graph, 0.5)
    assert one_size(model.rnn) == ({16}, set())


@pytest.mark.parametrize(
    "spoil", ["weight_hh_l1", "weight_ih_l1_reverse", "bias_ih_l0", "weight_hr_l1"]
)
def test_the_trace_sees_sizes_that_do_not_fit(spoil):
    """The control: shapes on meta tensors look at every weight, as the kernels do not."""
    model = Recurrent(nn.LSTM, 2, True, 4).to("meta")
    x = torch.randn(4, 6, 5, device="meta")
    assert capture(model, (x,), tracers=("meta",)).answers == {"meta": "ok"}
    shorter = getattr(model.rnn, spoil)[:-1]
    setattr(model.rnn, spoil, nn.Parameter(shorter))
    with pytest.raises(TraceError) as error:
        capture(model, (x,), tracers=("meta",))
    assert "of a recurrent module has weights of" in error.value.answers["meta"]


@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_have_classes_and_keep_their_function(kind):
    model, x, lengths = Packed(kind).eval(), torch.randn(3, 6, 5), torch.tensor([6, 2, 4])
    graph = trace(model, (x, lengths))
    assert not graph.frozen_ops
    result = check(graph, example=((x, lengths), {}))
    assert result.passed, result
    assert any(each.free and each.size == 12 for each in graph.axis_classes)
    torch.testing.assert_close(permute(graph, seed=1)(x, lengths), model(x, lengths))


def test_cells_say_their_new_sizes():
    model, x = Cells().eval(), torch.randn(4, 5)
    slim = prune(trace(model, (x,)), 0.5)
    assert (slim.lstm.hidden_size, slim.gru.input_size, slim.gru.hidden_size) == (4, 4, 3)
    assert slim(x).isfinite().all()


def test_weights_that_are_made_from_others_are_refused():
    """torch runs on its list of parameters, which a parametrization does not reach."""
    model, x = Recurrent(nn.LSTM), torch.randn(2, 4, 5)
    torch.nn.utils.parametrizations.weight_norm(model.rnn, "weight_hh_l0")
    graph = trace(model, (x,))
    hidden = next(c for c in graph.axis_classes if c.free and any("hh" in m.fqn for m in c.members))
    with pytest.raises(SurgeryError, match="from other parameters"):
        prune(graph, {hidden: 4})
