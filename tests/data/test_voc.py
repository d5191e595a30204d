"""VOC annotations: what is refused, and that mmdet would have read it without a message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from upvit_mm.data.checks import check_datasets

SIDE = 64
NAMES = ('RBC', 'WBC')


class Cells:
    """Three pictures of each part in VOC's folders, two objects each, and configs for them."""

    def __init__(self, root: Path):
        self.root = root
        for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
            (root / folder).mkdir(parents=True)
        for part in ('train', 'val'):
            ids = [f'{part}_{k}' for k in range(3)]
            (root / f'ImageSets/Main/{part}.txt').write_text('\n'.join(ids) + '\n')
            for name in ids:
                self.write(name, [('RBC', 5, 6, 20, 30), ('WBC', 30, 6, 60, 40)])

    def write(self, name: str, objects: list[tuple[str, int, int, int, int]], side: int = SIDE) -> Path:
        """A picture and its XML file."""
        Image.new('RGB', (SIDE, SIDE)).save(self.root / f'JPEGImages/{name}.jpg')
        rows = ''.join(
            f'<object><name>{kind}</name><difficult>0</difficult><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>'
            f'<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>'
            for kind, a, b, c, d in objects
        )
        path = self.root / f'Annotations/{name}.xml'
        path.write_text(f'<annotation><size><width>{side}</width><height>{SIDE}</height></size>{rows}</annotation>')
        return path

    def cfg(self, classes: Any = NAMES, heads: int = 2, **changes: Any) -> dict[str, Any]:
        """A RetinaNet's config; ``val={...}`` and ``train={...}`` change settings of the datasets."""
        loaders = {}
        for part in ('train', 'val'):
            settings = dict(type='VOCDataset', data_root=str(self.root), ann_file=f'ImageSets/Main/{part}.txt')
            settings |= dict(data_prefix=dict(sub_data_root='')) | (
                dict(metainfo=dict(classes=classes)) if classes else {}
            )
            loaders[f'{part}_dataloader'] = dict(dataset=settings | changes.pop(part, {}))
        model = dict(type='RetinaNet', bbox_head=dict(type='RetinaHead', num_classes=heads))
        return dict(default_scope='mmdet', model=model, **loaders) | changes


@pytest.fixture
def cells(tmp_path) -> Cells:
    return Cells(tmp_path / 'cells')


@pytest.fixture
def read(scope) -> Callable[[dict], Counter]:
    """``read(cfg)``: objects by label, as mmdet reads the training part."""

    def count(cfg: dict) -> Counter:
        from mmdet.registry import DATASETS

        scope('mmdet')
        dataset = DATASETS.build(dict(cfg['train_dataloader']['dataset'], pipeline=[]))
        infos = [dataset.get_data_info(k) for k in range(len(dataset))]
        return Counter(instance['bbox_label'] for info in infos for instance in info['instances'])

    return count


def refused(cfg: dict, *parts: str) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as info:
        check_datasets(cfg, parts or ('train', 'val'))
    return str(info.value)


def test_good_data_pass(cells, read, caplog):
    with caplog.at_level('INFO', 'upvit_mm'):
        check_datasets(cells.cfg(), ('train', 'val'))
    assert caplog.messages == [
        f'{cells.root}/ImageSets/Main/{part}.txt: 3 images, 6 objects' for part in ('train', 'val')
    ]
    assert read(cells.cfg()) == {0: 3, 1: 3}


def test_names_in_another_case(cells, read):
    """mmdet reads none of these objects, and says nothing."""
    cfg = cells.cfg(('rbc', 'wbc'))
    assert read(cfg) == {}
    text = refused(cfg)
    assert '6 of 6 objects have names that train_dataloader.dataset does not list: RBC, WBC' in text
    assert "different only in case or blanks: 'RBC' for 'rbc', 'WBC' for 'wbc'" in text
    assert "Set metainfo=dict(classes=('RBC', 'WBC')) in all parts and num_classes=2 in every head" in text


def test_names_of_the_stock_config(cells):
    """VOC's own twenty classes are the default."""
    text = refused(cells.cfg(None))
    assert text.endswith(
        "Set metainfo=dict(classes=('RBC', 'WBC')) in all parts and num_classes=2 in every head, or set "
        'allow_unlisted_categories=True to leave them out.'
    )
    text = refused(cells.cfg(None, train=dict(type='XMLDataset')))
    assert text == "train_dataloader.dataset lists no classes; set metainfo=dict(classes=('RBC', 'WBC'))."


def test_a_subset_on_purpose(cells, caplog):
    with caplog.at_level('WARNING', 'upvit_mm'):
        check_datasets(cells.cfg(('WBC',), heads=1, allow_unlisted_categories=True), ('train', 'val'))
    assert caplog.messages == []
    with caplog.at_level('WARNING', 'upvit_mm'):
        check_datasets(cells.cfg(('rbc', 'WBC'), allow_unlisted_categories=True), ('train',))
    dropped, empty = caplog.messages
    assert dropped.endswith("(different only in case or blanks: 'RBC' for 'rbc'); mmdet drops them without a message")
    assert empty.endswith('has no object of 1 classes: rbc')


def test_classes_that_differ_between_parts_and_heads(cells):
    other = dict(metainfo=dict(classes=('WBC', 'RBC')))
    assert 'val_dataloader.dataset lists 2 classes (WBC, RBC), train_dataloader.dataset in another order' in refused(
        cells.cfg(val=other)
    )
    text = refused(cells.cfg(heads=20))
    assert text == (
        'numbers of classes differ: data of train 2, data of val 2, model.bbox_head.num_classes 20. Set '
        'model.bbox_head.num_classes=2.'
    )


def test_missing_files(cells):
    (cells.root / 'JPEGImages/train_1.jpg').unlink()
    assert '1 of 3 pictures are not in' in (text := refused(cells.cfg()))
    assert "('train_1.jpg'). Put them there, or correct data_root and img_subdir, sub_data_root." in text
    (cells.root / 'Annotations/val_0.xml').unlink()
    assert "('val_0.xml')" in refused(cells.cfg(), 'val')
    missing = refused(cells.cfg(train=dict(ann_file='train.txt')))
    assert missing.startswith(f"train_dataloader.dataset.ann_file = '{cells.root}/train.txt': no such list of names")


def test_pictures_that_mmdet_does_not_look_for(cells):
    for path in (cells.root / 'JPEGImages').iterdir():
        path.rename(path.with_suffix('.png'))
    text = refused(cells.cfg())
    assert 'end in .png; mmdet reads VOC data only from .jpg. Convert them, or write the annotations in COCO' in text


def test_boxes_without_size(cells, read, caplog):
    cells.write('train_2', [('RBC', 5, 6, 5, 30)])
    cfg = cells.cfg()
    assert read(cfg) == {0: 3, 1: 2}  # the box is used in training
    text = refused(cfg)
    assert '1 of 5 objects have boxes without width or height (train_2.xml, RBC: xmin 5, ymin 6, xmax 5, ymax' in text
    with caplog.at_level('WARNING', 'upvit_mm'):
        check_datasets(cfg | dict(allow_faulty_annotations=True), ('train',))
    assert len(caplog.messages) == 1


def test_sizes_and_damaged_files(cells):
    cells.write('val_1', [('RBC', 5, 6, 20, 30)], side=0)  # mmdet would leave the picture out
    text = refused(cells.cfg(), 'val')
    assert "('val_1.jpg' is loaded as 64x64, the file says 0x64)" in text
    (cells.root / 'Annotations/train_0.xml').write_text('<annotation><object/></annotation>')
    assert "train_0.xml' cannot be read" in refused(cells.cfg())
