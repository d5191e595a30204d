"""A real pretrained ViT-S/14, where there is one: ``UPVIT_MM_REAL_VIT`` names its file, else these tests are skipped.

The file is a state dict with timm's names for ``vit_small_patch14_dinov2``, as Meta publishes DINOv2-small.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform

from upvit_mm.arch import get_arch
from upvit_mm.checkpoints import load_backbone, read_checkpoint
from upvit_mm.consistency.cka import LinearCKA
from upvit_mm.models import build_backbone
from upvit_mm.pruning import plan_for_target, slice_state
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.compensate import compensate
from upvit_mm.pruning.criteria import ReadTokensChange, token_deviations
from upvit_mm.pruning.importance import fisher_scores
from upvit_mm.pruning.token_net import TokenNet

FILE = os.environ.get('UPVIT_MM_REAL_VIT')
PICTURES = Path(__file__).parents[1] / 'fixtures/pictures'
FIRST_CUT = dict(qk_dims=[348], v_dims=[348], mlp_hidden_dims=[1152])  # 58 of 64 channels of a head, 3/4 of each FFN
pytestmark = pytest.mark.skipif(not FILE, reason='UPVIT_MM_REAL_VIT names no file')


@pytest.fixture
def dense() -> TokenNet:
    backbone = build_backbone(get_arch('dinov2-small'))
    backbone.load_state_dict(load_backbone(FILE, arch=backbone.arch))
    return TokenNet(backbone)


def batches(pattern: str, side: int = 98) -> list[Batch]:
    """Real pictures of the tests, eight at a time, stretched."""
    prepare = create_transform((3, side, side), crop_pct=1.0, crop_mode='squash')
    images = [prepare(Image.open(path).convert('RGB')) for path in sorted(PICTURES.glob(pattern))]
    assert len(images) > 1
    starts = range(0, len(images), 8)
    return [Batch(torch.stack(images[k : k + 8]), range(len(images))[k : k + 8]) for k in starts]


@pytest.mark.parametrize('size', [(518, 518), (98, 140)])
def test_it_is_timms(dense, size, image, distance):
    theirs = timm.create_model('vit_small_patch14_dinov2', num_classes=0, dynamic_img_size=True).eval()
    theirs.load_state_dict(read_checkpoint(FILE))
    x = image(*size, batch=1)
    with torch.no_grad():
        expected = theirs.forward_features(x)
        assert distance(dense(x)[0][0], expected[:, 1:]) < 1e-5
        dense.backbone.out_type = 'cls_token'
        assert distance(dense.backbone(x)[0], expected[:, 0]) < 1e-5


def test_the_first_cut_keeps_the_map(dense):
    """Scored and compensated on 21 pictures of cells and nuclei; judged on others, at that size and at twice it."""
    arch = dense.backbone.arch
    proxy = batches('sorted/train/*/*') + batches('nuclei/train/*.png')
    scores = fisher_scores(dense, proxy, criterion=ReadTokensChange(token_deviations(dense, proxy)))
    plan = plan_for_target(arch, arch.with_widths(FIRST_CUT), scores)
    pruned = TokenNet(build_backbone(plan.target_arch))
    state = {f'backbone.{key}': value for key, value in dense.backbone.state_dict().items()}
    pruned.load_state_dict(slice_state(state, plan))
    sliced = cka_of(dense, pruned)
    compensate(dense, pruned, plan, proxy)
    found = cka_of(dense, pruned)
    assert found[0] > 0.92  # measured: 0.935, sliced only 0.836
    assert found[1] > 0.96  # 0.971, 0.915
    assert all(after > before for before, after in zip(sliced, found))


@torch.no_grad()
def cka_of(dense: TokenNet, pruned: TokenNet) -> list[float]:
    """Of the last map at 98 and 196 px, on blood and nuclei that were not used."""
    found = []
    for side in (98, 196):
        measure = LinearCKA()
        for batch in batches('blood/JPEGImages/*.jpg', side) + batches('nuclei/val/*.png', side):
            measure.update(dense(batch.images)[0][0], pruned(batch.images)[0][0])
        found.append(measure.compute()['cka'])
    return found
