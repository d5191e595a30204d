"""What a pruning job, a comparison and a progressive schedule refuse before hours of work."""

from __future__ import annotations

import shutil

import pytest
import torch
from mmpretrain.models import GlobalAveragePooling

from upvit_mm.arch.family import PVTV2
from upvit_mm.workflow.prune_checks import check_images, check_readout, check_training_data


def test_the_checkpoint_has_the_classes_of_the_data(cfg):
    check_images(cfg, ('train', 'val'), 10)
    check_images(cfg, ('train',), 0)  # without a head
    message = (
        r"data of train 10, .*model.head.num_classes 10, .*the checkpoint's head 4\. For the checkpoint's head use"
    )
    with pytest.raises(ValueError, match=message):
        check_images(cfg, ('train', 'val'), 4)
    cfg.model.head.num_classes = 2
    with pytest.raises(ValueError, match=r'Set model.head.num_classes=10(, data_preprocessor.num_classes=10)?\.$'):
        check_images(cfg, ('train',), 10)


def test_parts_that_are_not_read_play_no_role(cfg):
    cfg.val_dataloader = dict(dataset=dict(type='ImageNet', data_root='nowhere', split='val'))
    check_images(cfg, ('train',), 10)
    cfg.model.head.num_classes = 2
    check_images(cfg, (), 10)
    with pytest.raises(
        FileNotFoundError, match=r"nowhere' does not exist.* Images without labels are enough: --images"
    ):
        check_images(cfg, ('val',), 10)


def test_folders_of_other_programs(cfg, digits_folder, tmp_path):
    shutil.copytree(digits_folder / 'classification/val', tmp_path / 'val')
    (tmp_path / 'val/.ipynb_checkpoints').mkdir()
    cfg.val_dataloader.dataset.data_root = str(tmp_path)
    with pytest.raises(ValueError, match=r'have left \(\.ipynb_checkpoints\): mmpretrain takes them for classes'):
        check_images(cfg, ('train', 'val'), 10)


def test_trainings_need_both_parts_and_the_classes_of_the_checkpoint(cfg, checkpoint, tmp_path):
    check_training_data(cfg, None)
    check_training_data(cfg, checkpoint)
    state = torch.load(checkpoint)['state_dict']
    state |= {f'head.fc.{key}': state[f'head.fc.{key}'][:4] for key in ('weight', 'bias')}
    torch.save({'state_dict': state}, tmp_path / 'four.pth')
    with pytest.raises(ValueError, match=r"model.head.num_classes 10, .*the checkpoint's head 4\."):
        check_training_data(cfg, str(tmp_path / 'four.pth'))
    with pytest.raises(FileNotFoundError, match=r'none\.pth'):
        check_training_data(cfg, str(tmp_path / 'none.pth'))
    cfg.val_dataloader = None
    with pytest.raises(ValueError, match='the config has no val_dataloader, which every training here needs; give one'):
        check_training_data(cfg, None)


@pytest.mark.parametrize('family', ['pvtv2'])  # a DeiT has none
def test_the_neck_however_it_is_written(cfg):
    """As a class, which new-style configs give, too."""
    for neck in ('GlobalAveragePooling', 'mmpretrain.GlobalAveragePooling', GlobalAveragePooling):
        cfg.model.neck = dict(type=neck)
        check_readout(cfg, PVTV2)
    cfg.model.neck = dict(type='mmpretrain.GeneralizedMeanPooling')
    with pytest.raises(ValueError, match='must read the mean over tokens'):
        check_readout(cfg, PVTV2)
