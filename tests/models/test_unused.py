"""What comes after the last of ``out_indices`` never runs: it stays in the state dict, and is not trained."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

STAGE3 = 'stages.3.'
AFTER_1 = ('stages.0.blocks.2.', 'stages.0.blocks.3.', 'stages.0.blocks.4.', 'stages.0.norm.')
CASES = [
    ('pvtv2', dict(out_indices=(0, 1, 2)), (STAGE3,)),
    ('pvtv2', dict(out_indices=(0,)), ('stages.1.', 'stages.2.', STAGE3)),
    ('pvtv2', dict(out_indices=(1, 3)), ()),
    ('pvtv2', dict(), ()),
    ('deit', dict(out_indices=(1,)), AFTER_1),
    ('deit', dict(out_indices=(0, 1), out_type='cls_token'), AFTER_1),
    ('deit', dict(out_indices=(3,), window_size=2), ('stages.0.blocks.4.', 'stages.0.norm.')),
    ('deit', dict(out_indices=(0, 4)), ()),
    ('deit', dict(out_type='cls_token'), ()),
    ('deit', dict(), ()),
]


def loss_of(outs) -> torch.Tensor:
    return sum(out.square().mean() for out in outs)


def named(backbone, prefixes) -> set[str]:
    return {n for n, _ in backbone.named_parameters() if prefixes and n.startswith(prefixes)}


@pytest.mark.parametrize(('family', 'settings', 'prefixes'), CASES)
def test_just_what_gets_no_gradient_asks_for_none(family, settings, prefixes, build, image):
    backbone = build(family, **settings).train()
    loss_of(backbone(image(64, 80))).backward()
    without = {n for n, p in backbone.named_parameters() if p.grad is None}
    assert without == {n for n, p in backbone.named_parameters() if not p.requires_grad} == named(backbone, prefixes)


@pytest.mark.parametrize(('family', 'frozen'), [('pvtv2', ('stages.0.', STAGE3)), ('deit', AFTER_1)])
def test_frozen_stages_and_unused_ones_add_up(family, frozen, build, image):
    last = 2 if family == 'pvtv2' else 1
    backbone = build(family, out_indices=(last,), frozen_stages=1, drop_path_rate=0.2).train()
    if family == 'deit':
        frozen = ('cls_token', 'pos_embed', 'stages.0.patch_embed.', 'stages.0.blocks.0.', *frozen)
    assert {n for n, p in backbone.named_parameters() if not p.requires_grad} == named(backbone, frozen)
    for mode in (True, False, True):
        backbone.train(mode)
        training = {n for n, m in backbone.named_modules() if m.training and not list(m.children())}
        assert bool(training) == mode
        assert not any(f'{n}.'.startswith(frozen) for n in training)


@pytest.mark.parametrize(('family', 'settings', 'prefixes'), CASES)
def test_state_dict_stays_whole(family, settings, prefixes, build, identical):
    backbone, other = build(family, **settings), build(family, seed=3)
    backbone.load_state_dict(other.state_dict())
    assert identical(backbone.state_dict(), other.state_dict())
    lacking = other.state_dict()
    del lacking[max(named(backbone, prefixes), default='stages.0.norm.weight')]
    with pytest.raises(ValueError, match='1 tensors are missing, extra or of another shape'):
        backbone.load_state_dict(lacking)


@pytest.mark.parametrize(
    ('family', 'out_indices', 'parameters'), [('pvtv2', (0, 1, 2), 18_898), ('deit', (1,), 23_339), ('deit', (4,), 0)]
)
def test_the_log_says_it_once(family, out_indices, parameters, build, caplog):
    with caplog.at_level(logging.INFO, logger='upvit_mm'):
        backbone = build(family, out_indices=out_indices)
        backbone.train().eval()
    said = [r.getMessage() for r in caplog.records if 'not trained' in r.getMessage()]
    assert sum(p.numel() for p in backbone.parameters() if not p.requires_grad) == parameters
    expected = (
        f'{type(backbone).__name__}(arch=tiny-{family}): out_indices = {out_indices}, so what comes after the last of '
        f'them never runs: {parameters:,} parameters are not trained.'
    )
    assert said == ([expected] if parameters else [])


@pytest.fixture
def one_process(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures('one_process')
@pytest.mark.parametrize(('family', 'settings', 'prefixes'), CASES)
@pytest.mark.parametrize('options', [{}, dict(frozen_stages=0), dict(with_cp=True)], ids=['plain', 'frozen', 'with_cp'])
def test_distributed_training_waits_for_no_gradient(family, settings, prefixes, options, build, image):
    """DDP raises in the second step when a parameter took no part in the first."""
    backbone = build(family, **settings, **options).train()
    alone = copy.deepcopy(backbone)
    loss_of(alone(image(64, 64))).backward()
    expected = [None if p.grad is None else p.grad for p in alone.parameters()]
    wrapped = DistributedDataParallel(backbone)
    for _ in range(2):
        backbone.zero_grad()
        loss_of(wrapped(image(64, 64))).backward()
    for p, grad in zip(backbone.parameters(), expected):
        assert (p.grad is None) == (grad is None)
        if grad is not None:
            torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-5)
