"""The config that tools/init.py writes for COCO files, VOC folders and class folders: no error, and it trains."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from mmengine.config import Config

from upvit_mm.arch import ArchSpec, get_arch
from upvit_mm.data.coco import examine
from upvit_mm.data.voc_to_coco import look_at_voc
from upvit_mm.doctor.__main__ import main as doctor
from upvit_mm.runner import build_runner
from upvit_mm.workflow.own_config import OwnConfig

ARCHS = Path(__file__).parents[2] / 'configs/_base_/archs'
XML = """<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"""
OBJECT = (
    '<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>'
    '<xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>'
)


@pytest.fixture
def arch(tmp_path) -> str:
    """A narrow PVTv2."""
    tiny = ArchSpec(
        name='tiny', family='pvtv2', embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1),
        mlp_hidden_dims=(16, 16, 32, 32), sr_ratios=(8, 4, 2, 1),
    )  # fmt: skip
    return str(tiny.save_json(tmp_path / 'arch.json'))


@pytest.fixture
def voc(digits_folder, tmp_path) -> Path:
    """The digit scenes in VOC's form; every third object is difficult."""
    root = tmp_path / 'VOC'
    for part in ('train', 'val'):
        content = json.loads((digits_folder / f'annotations/instances_{part}.json').read_text())
        names = {category['id']: category['name'] for category in content['categories']}
        for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
            (root / folder).mkdir(parents=True, exist_ok=True)
        stems = []
        for image in content['images']:
            rows = [row for row in content['annotations'] if row['image_id'] == image['id']]
            objects = []
            for k, row in enumerate(rows):
                x, y, w, h = map(round, row['bbox'])
                objects.append(
                    OBJECT.format(x + 1, y + 1, x + w, y + h, name=names[row['category_id']], difficult=int(k % 3 == 0))
                )
            stems.append(f'{part}_{Path(image["file_name"]).stem}')
            text = XML.format(width=image['width'], height=image['height'], objects=''.join(objects))
            (root / f'Annotations/{stems[-1]}.xml').write_text(text)
            picture = digits_folder / part / image['file_name']
            shutil.copy(picture, root / f'JPEGImages/{stems[-1]}{picture.suffix}')
        (root / f'ImageSets/Main/{part}.txt').write_text('\n'.join(stems))
    return root


def trained_steps(config: Path, tmp_path: Path) -> int:
    """Iterations of a training of one epoch."""
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(
        {'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 5, 'work_dir': str(tmp_path / 'run'), 'launcher': 'none'}
        | {f'{part}_dataloader.num_workers': 0 for part in ('train', 'val', 'test')}
        | {f'{part}_dataloader.persistent_workers': False for part in ('train', 'val', 'test')}
    )
    runner = build_runner(cfg, ('train', 'val'))
    runner.train()
    return runner.iter


@pytest.mark.parametrize('model', ['retinanet', 'mask-rcnn'])
def test_coco(model, scope, digits_folder, arch, tmp_path, capsys):
    out = tmp_path / 'own.py'
    data, cfg = OwnConfig('detector', digits_folder, arch, None, out, model).write()
    assert (data.classes, data.size, data.train.pictures, data.val.pictures) == (tuple('0123456789'), (128, 128), 8, 2)
    assert cfg.model.neck.in_channels == [8, 16, 24, 32]
    assert cfg.train_dataloader.batch_size == 8
    assert cfg.test_pipeline[1].scale == (128, 128)
    assert cfg.train_cfg.max_epochs == 100
    scope('mmdet')
    assert doctor([str(out), '--gpus', '1']) == 0, capsys.readouterr().out
    assert ' 0 error' in capsys.readouterr().out
    assert trained_steps(out, tmp_path) == 1


@pytest.mark.parametrize('model', ['retinanet', 'mask-rcnn'])
def test_patches_of_14_pixels(model, scope, digits_folder, tmp_path, capsys):
    """The strides of the heads are those of the maps, which doctor and training check."""
    tiny = dict(embed_dims=8, depths=1, num_heads=1, mlp_hidden_dims=16)
    arch = get_arch('dinov2-small-reg').with_widths(tiny | dict(qk_dims=8, v_dims=8, qk_scales=0.3, name='tiny'))
    out, path = tmp_path / 'own.py', arch.save_json(tmp_path / 'arch.json')
    cfg = OwnConfig('detector', digits_folder, str(path), None, out, model).write()[1]
    head = cfg.model.bbox_head if model == 'retinanet' else cfg.model.rpn_head
    assert head.anchor_generator.strides[1] == {'retinanet': 14, 'mask-rcnn': 7}[model]
    scope('mmdet')
    assert doctor([str(out), '--gpus', '1']) == 0, capsys.readouterr().out
    if model == 'retinanet':
        assert trained_steps(out, tmp_path) == 1


def test_voc(scope, voc, arch, tmp_path, capsys):
    out = tmp_path / 'own.py'
    data, cfg = OwnConfig('detector', tmp_path, arch, None, out).write()
    assert (data.train.pictures, data.val.pictures, len(data.classes)) == (8, 2, 10)
    assert cfg.metainfo.classes == tuple('0123456789')
    scope('mmdet')
    assert doctor([str(out), '--gpus', '1']) == 0, capsys.readouterr().out
    assert trained_steps(out, tmp_path) == 1


def test_voc_boxes_are_those_of_coco(digits_folder, voc, tmp_path):
    look_at_voc(voc, tmp_path / 'own')
    theirs = json.loads((digits_folder / 'annotations/instances_val.json').read_text())
    ours = json.loads((tmp_path / 'own_val.json').read_text())
    assert [row['bbox'] for row in ours['annotations']] == [
        list(map(round, row['bbox'])) for row in theirs['annotations']
    ]
    assert sum(row['iscrowd'] for row in ours['annotations']) == examine(tmp_path / 'own_val.json').crowds > 0


@pytest.mark.parametrize('family', ['pvtv2', 'deit'])
def test_class_folders(family, scope, digits_folder, arch, tmp_path, capsys):
    out, chosen = tmp_path / 'own.py', arch if family == 'pvtv2' else str(ARCHS / 'deit-micro.json')
    data = tmp_path / 'data'
    for part in ('train', 'val'):
        for folder in sorted((digits_folder / 'classification/val').iterdir()):
            for picture in sorted(folder.iterdir())[:2]:
                (data / part / folder.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(picture, data / part / folder.name)
    found, cfg = OwnConfig('classifier', data, chosen, None, out, epochs=3).write()
    assert (found.train.pictures, found.val.pictures, len(found.classes)) == (20, 20, 10)
    assert cfg.model.head.num_classes == 10
    assert cfg.test_pipeline[2].crop_size == cfg.train_pipeline[1].scale == 64
    assert cfg.train_cfg.max_epochs == 3
    scope('mmpretrain')
    assert doctor([str(out), '--gpus', '1']) == 0, capsys.readouterr().out
    assert trained_steps(out, tmp_path) == 1


def crowded(folder: Path, objects: int) -> Path:
    """COCO files with one picture of many objects, of 1600x2000 pixels."""
    from PIL import Image

    for part in ('train', 'valid'):  # as some annotation tools name and place them
        (folder / part).mkdir(parents=True)
        Image.new('RGB', (1600, 2000)).save(folder / part / 'a.png')
        rows = [
            dict(id=k, image_id=1, category_id=1, bbox=[k, k, 20, 20], area=400, iscrowd=0)
            for k in range(1, objects + 1)
        ]
        images, categories = [dict(id=1, file_name='a.png', width=1600, height=2000)], [dict(id=1, name='cell')]
        content = dict(images=images, annotations=rows, categories=categories)
        (folder / part / '_annotations.coco.json').write_text(json.dumps(content))
    return folder


def test_many_objects_and_large_pictures(arch, tmp_path):
    data, cfg = OwnConfig('detector', crowded(tmp_path / 'cells', 121), arch, None, tmp_path / 'own.py').write()
    assert data.most == 121
    assert cfg.model.test_cfg.max_per_img == 200  # 1.5 times, in steps of 50
    assert cfg.test_pipeline[1].scale == (1000, 800)
    assert cfg.train_dataloader.dataset.data_prefix.img == 'train/'
    assert cfg.val_dataloader.dataset.ann_file == 'valid/_annotations.coco.json'


def test_size_and_batch_are_the_users(digits_folder, arch, tmp_path):
    chosen = OwnConfig('detector', digits_folder, arch, None, tmp_path / 'own.py', batch=3, size=(192, 256))
    _, cfg = chosen.write()
    assert cfg.train_pipeline[2].scale == cfg.test_pipeline[1].scale == (256, 192)
    assert cfg.train_dataloader.batch_size == 3
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-4 * 3 / 16)
    assert cfg.default_hooks.logger.interval == 1  # 3 steps in an epoch


@pytest.mark.parametrize('model', ['retinanet', 'mask-rcnn'])
def test_a_plain_vit(model, digits_folder, tmp_path):
    chosen = OwnConfig('detector', digits_folder, 'deit-tiny', None, tmp_path / 'own.py', model)
    _, cfg = chosen.write()
    assert cfg.model.neck.type == 'upvit_mm.SimpleFeaturePyramid'
    assert cfg.model.neck.in_channels == [192]
    assert cfg.optim_wrapper.optimizer.lr == {'retinanet': 1e-4, 'mask-rcnn': 2e-4}[model] / 2  # 8 pictures, not 16


def test_mistakes(digits_folder, arch, voc, tmp_path, caplog):
    def said(error: type, *words, **more) -> str:
        with pytest.raises(error) as found:
            OwnConfig(*words, tmp_path / 'own.py', **more).write()
        assert not (tmp_path / 'own.py').exists()
        return str(found.value)

    assert 'data folder' in said(FileNotFoundError, 'detector', tmp_path / 'no', arch, None)
    assert "checkpoint 'no.pth' does not exist" in said(FileNotFoundError, 'detector', digits_folder, arch, 'no.pth')
    assert 'epochs = 0: must be at least 1' in said(ValueError, 'detector', digits_folder, arch, None, epochs=0)
    assert 'batch = 0: must be at least 1' in said(ValueError, 'detector', digits_folder, arch, None, batch=0)
    only = tmp_path / 'only'
    shutil.copytree(digits_folder / 'train', only / 'train')
    shutil.copy(digits_folder / 'annotations/instances_train.json', only / 'a_train.json')
    text = said(ValueError, 'detector', only, arch, None)
    assert text.startswith('val data: of the JSON files (a_train.json) none fits. Give the right one as --val NAME.')
    assert 'move about a tenth of the pictures' in text
    (only / 'b_train.json').touch()
    assert '2 JSON files fit: a_train.json, b_train.json' in said(ValueError, 'detector', only, arch, None)
    folders = digits_folder / 'classification'
    text = said(ValueError, 'classifier', folders / 'val', arch, None)
    assert 'has 10 folders, none of them a part: put the class folders into train/' in text
    next((voc / 'JPEGImages').glob('val_*')).unlink()
    assert 'has no picture val_' in said(FileNotFoundError, 'detector', voc, arch, None)
    with caplog.at_level(logging.ERROR):  # the names of classes differ between the parts
        (only / 'b_train.json').unlink()
        content = json.loads((digits_folder / 'annotations/instances_val.json').read_text())
        content['categories'].reverse()
        shutil.copytree(digits_folder / 'val', only / 'val')
        (only / 'val.json').write_text(json.dumps(content))
        assert 'tools/match_categories.py' in said(ValueError, 'detector', only, arch, None)
