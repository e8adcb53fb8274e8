"""The checks that a GPU gets run here too, so that they follow the library's names."""

import pytest

from examples.paper.device_checks import CHECKS


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # inductor's own
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("name", list(CHECKS))
def test_a_graft_passes_on_every_device(name, device):
    assert CHECKS[name](device)
