"""Scores by a detector's own loss: they are its squared gradients, picture by picture."""

from __future__ import annotations

import pytest
import torch

from upvit_mm.compare.contestants import Contestant, with_backbone
from upvit_mm.data.picture_set import PictureSet
from upvit_mm.models.detector_loss import DetectorLoss
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.depth_scores import choose_blocks
from upvit_mm.pruning.importance import fisher_sums
from upvit_mm.pruning.token_net import TokenNet
from upvit_mm.workflow.whole_detector import build_detector


@pytest.fixture
def subject(detector_config, archs, randomise):
    """``subject(family, kind, double)``: a random detector, and a batch of three annotated pictures."""

    def make(family: str, kind: str = 'retinanet', double: bool = True):
        cfg = with_backbone(detector_config(family, kind), Contestant.parse(f'a={archs(family)[0]}'))
        detector = randomise(build_detector(cfg)).eval()
        batch = PictureSet(cfg, detector.data_preprocessor, None, 3, 0, 3, labelled=True)[0]
        if double:
            detector, batch = detector.double(), batch._replace(images=batch.images.double())
        return detector, batch

    return make


def loss_of(detector, batch: Batch, k: int) -> torch.Tensor:
    torch.manual_seed(batch.numbers[k])
    return detector.parse_losses(detector.loss(batch.images[k : k + 1], [batch.samples[k].clone()]))[0]


@pytest.mark.parametrize('family', ['pvtv2', 'deit'])
def test_values_are_the_losses_of_single_pictures(subject, family):
    detector, batch = subject(family)
    wanted = torch.stack([loss_of(detector, batch, k) for k in range(3)])
    criterion, net = DetectorLoss(detector), TokenNet(detector.backbone)
    state = torch.get_rng_state()
    values = criterion.values(net(batch.images), batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert values.shape == (3, 1)
    assert len({round(value, 3) for value in values[:, 0].tolist()}) == 3
    assert torch.allclose(values[:, 0], wanted, rtol=1e-9)
    twice = criterion.values(net(batch.repeated(2).images), batch.repeated(2))
    assert torch.allclose(twice, values.repeat(2, 1), rtol=1e-9)


def test_heads_of_two_stages_draw_the_same_boxes_again(subject):
    detector, batch = subject('pvtv2', 'mask-rcnn', double=False)
    net, criterion = TokenNet(detector.backbone), DetectorLoss(detector)
    torch.manual_seed(1)
    first = dict(fisher_sums(net, batch, criterion=criterion))
    torch.manual_seed(2)
    again = dict(fisher_sums(net, batch, criterion=criterion))
    assert all(torch.equal(values, again[name]) for name, values in first.items())
    assert all(values.max() > 0 for values in first.values())


def test_scores_are_mean_squared_gradients(subject):
    """One gate after the other, by differences of the loss of the whole detector, in float64."""
    detector, batch = subject('pvtv2')
    net, name = TokenNet(detector.backbone), 'stages.2.blocks.0.mlp_hidden'
    by_dim = dict(fisher_sums(net, batch, criterion=DetectorLoss(detector), draws=3))
    step, found = 1e-5, []
    for channel in range(4):
        slopes = []
        for k in range(3):
            ends = []
            for sign in (1, -1):
                gate = torch.ones(by_dim[name].numel(), dtype=torch.float64)
                gate[channel] += sign * step
                with torch.no_grad(), net.gated({name: gate}):
                    ends.append(loss_of(detector, batch, k).item())
            slopes.append((ends[0] - ends[1]) / (2 * step))
        found.append(sum(slope**2 for slope in slopes))
    assert by_dim[name][:4].tolist() == pytest.approx(found, rel=1e-4)
    assert by_dim[name].min() > 0


def test_more_draws_give_nothing_new(subject):
    detector, batch = subject('deit')
    net, criterion = TokenNet(detector.backbone), DetectorLoss(detector)
    once, often = (dict(fisher_sums(net, batch, criterion=criterion, draws=n, seed=n)) for n in (1, 5))
    for name, values in once.items():
        assert torch.allclose(values, often[name], rtol=1e-9)


def test_blocks(subject):
    """The block goes without which the loss changes least."""
    detector, batch = subject('pvtv2')
    arch = detector.backbone.arch
    assert all(depth == 1 for depth in arch.depths)
    assert choose_blocks(TokenNet(detector.backbone), [batch], arch.depths, DetectorLoss(detector)) == tuple(
        ((0, 0),) for _ in arch.depths
    )


def test_what_is_refused(subject, monkeypatch):
    detector, batch = subject('pvtv2')
    criterion, net = DetectorLoss(detector), TokenNet(detector.backbone)
    criterion._detector.bbox_head.retina_cls.weight.data.fill_(float('nan'))
    with pytest.raises(ValueError, match=rf'the loss of picture {batch.numbers[0]} is nan; check the checkpoint'):
        criterion.values(net(batch.images), batch)
    assert torch.isfinite(detector.bbox_head.retina_cls.weight).all()  # a copy is used
    monkeypatch.setattr('torch.distributed.is_initialized', lambda: True)
    monkeypatch.setattr('torch.distributed.get_world_size', lambda: 2)
    with pytest.raises(ValueError, match="criterion = 'loss': the heads of mmdet average their losses over processes"):
        DetectorLoss(detector)
