"""Checks carried out one by one, on broken packages and broken configs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

import upvit_mm.doctor.environment
import upvit_mm.doctor.model
import upvit_mm.doctor.training  # noqa: F401 (these three fill CHECKS)
from upvit_mm.checkpoints import save_checkpoint
from upvit_mm.doctor.findings import CHECKS, Finding, carry_out
from upvit_mm.doctor.subject import Subject

CONFIGS = Path(__file__).parents[2] / 'configs'
DEMO = {
    'retinanet': 'demo/retinanet_up-pvtv2-micro_fpn_digits.py',
    'mask-rcnn': 'demo/mask-rcnn_up-pvtv2-micro_fpn_digits.py',
    'pvtv2': 'demo/up-pvtv2-micro_digits.py',
    'deit': 'demo/up-deit-micro_digits.py',
}


@pytest.fixture
def find() -> Callable[..., list[Finding]]:
    """``find(name, subject=None)``: what a check finds."""
    return lambda name, *subject: carry_out(CHECKS[name], *subject)


@pytest.fixture
def distribution(tmp_path, monkeypatch) -> Callable[[str, str], None]:
    """``distribution(name, version)``: as if pip had installed it too."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, version: str) -> None:
        info = tmp_path / f'{name.replace("-", "_")}-{version}.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')

    return write


@pytest.fixture
def broken(tmp_path, monkeypatch) -> Callable[[str, str], None]:
    """``broken(module, line)``: a package whose import runs that line."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(module: str, line: str) -> None:
        (tmp_path / module).mkdir()
        (tmp_path / module / '__init__.py').write_text(line)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return write


@pytest.fixture
def subject(scope, digits_folder) -> Callable[..., Subject]:
    """``subject(name, *options, **fields)``: a demo config on the small digits set; one of ``DEMO``, or a file."""

    def make(name: str, *options: str, **fields) -> Subject:
        path = CONFIGS / DEMO.get(name, name)
        data, judge = digits_folder, []
        if name in ('pvtv2', 'deit'):
            data = digits_folder / 'classification'
        else:
            judge = [f'{part}_evaluator.ann_file={data}/annotations/instances_val.json' for part in ('val', 'test')]
        roots = [f'{part}_dataloader.dataset.data_root={data}' for part in ('train', 'val', 'test')]
        return Subject(str(path), options=(*roots, *judge, *options), **fields)

    return make


@pytest.fixture
def backbone_file(tmp_path) -> Callable[..., str]:
    """``backbone_file(name, **changes)``: a checkpoint of the backbone of a demo config, with some tensors replaced."""

    def write(name: str, **changes: torch.Tensor) -> str:
        from upvit_mm.models import UPDeiT, UPPVTv2

        cfg = Config.fromfile(CONFIGS / DEMO[name])
        backbone = (UPDeiT if name == 'deit' else UPPVTv2)(cfg.arch)
        state = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
        path = save_checkpoint(tmp_path / f'{name}.pth', state | changes)
        return str(path)

    return write
