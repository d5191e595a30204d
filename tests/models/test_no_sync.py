"""The paths that a GPU takes, on tensors without numbers: nothing in them waits for a number of the device."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from upvit_mm.models.layers import depthwise, linear


class Recorded(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._overloadpacket.__name__)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize('family', ['dinov3', 'pvtv2'])
def test_nothing_asks_for_a_number(monkeypatch, build, tiny_arch, family):
    """Windows do not fit the grid. A fake tensor raises an error where code reads its value."""
    monkeypatch.setattr(depthwise, 'INTERPRETED', True)
    monkeypatch.setattr(depthwise, '_works_on', lambda device: True)
    monkeypatch.setattr(linear, 'JOINT_ON', ('cpu',))
    windows = {} if family == 'pvtv2' else dict(window_size=3, global_blocks=(0,))
    backbone = build(family, tiny_arch(family), drop_path_rate=0.1, **windows).train()
    with FakeTensorMode() as fake:
        state = {name: fake.from_tensor(tensor) for name, tensor in backbone.state_dict(keep_vars=True).items()}
        with Recorded() as recorded:
            maps = functional_call(backbone, state, fake.from_tensor(torch.empty(2, 3, 128, 160)))
            sum(m.square().sum() for m in maps).backward()
    assert not {'_local_scalar_dense', 'nonzero', 'item'} & set(recorded.names)
    fused = family == 'pvtv2' and depthwise.kernels is not None
    assert ('depthwise_gelu' in recorded.names) == ('depthwise_gelu_backward' in recorded.names) == fused
