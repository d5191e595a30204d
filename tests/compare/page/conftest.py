"""Small folders as the tools leave them, and a reader of pages."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure
from pycocotools.coco import COCO

from upvit_mm.arch import ArchSpec
from upvit_mm.compare.page import write_page
from upvit_mm.compare.paired import paired_difference
from upvit_mm.compare.token_report import write_contrast
from upvit_mm.compare.tokens import differences
from upvit_mm.data.digits import CLASSES
from upvit_mm.pruning import make_plan

VOID = {'meta', 'img', 'br', 'link', 'hr', 'input'}
AP = {'dense': 0.4, 'up': 0.35, 'vanilla': 0.3}
MACS = {'dense': 8_000_000, 'up': 2_000_000, 'vanilla': 2_000_000}
PARAMS = {'dense': 500_000, 'up': 125_000, 'vanilla': 125_000}
HEADS = 250_000  # parameters of a detector beside its backbone's
AREAS = {'': 1, '_50': 1, '_75': 0.5, '_s': 0.2, '_m': 0.6, '_l': None}  # share of AP; no large object
CONFIG = """
model = dict(type='{kind}')
test_dataloader = dict(dataset=dict(type='CocoDataset', data_root={root!r}, ann_file='annotations/instances_val.json',
    data_prefix=dict(img='val/'), metainfo=dict(classes={classes!r}), test_mode=True, pipeline=[]))
"""


class Page(HTMLParser):
    """What the tests ask of a page; raises where tags are not balanced.

    Attributes:
        text: all of it.
        tags: names and attributes, in order.
        tables: by the id of their caption, the cells' text by row, header and first column included.
    """

    def __init__(self, text: str):
        super().__init__()
        self.text, self.open, self.tags, self.tables, self.rows = text, [], [], {}, []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == 'caption':
            self.rows = self.tables[dict(attrs)['id']] = []
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            self.rows[-1].append('')

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ('td', 'th'):
            self.rows[-1][-1] = ' '.join(self.rows[-1][-1].split())

    def handle_data(self, data):
        if {'td', 'th'} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        """Attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]

    def row(self, caption: str, name: str) -> list[str]:
        """Cells of the one row of a table that has this first cell."""
        (found,) = [row[1:] for row in self.tables[caption] if row[0] == name]
        return found


@pytest.fixture
def write(tmp_path):
    """``write(**arguments)``: what ``write_page`` made of them, read."""
    return lambda title='Title', **arguments: Page(write_page(tmp_path / 'report.html', title, **arguments).read_text())


@pytest.fixture
def detectors(tmp_path, digits_folder):
    """``detectors(name, kinds, names)``: a folder of ``tools/compare_detectors.py``, two seeds; boxes are right."""
    coco = COCO(digits_folder / 'annotations/instances_val.json')

    def predictions(name):
        found = {'category_id': coco.getCatIds()[0], 'score': 2 * AP.get(name, 0.1)}
        return [found | {key: a[key] for key in ('image_id', 'bbox', 'segmentation')} for a in coco.anns.values()]

    def over(name, ap):
        """What two seeds are over 0.3; those of the dense network differ too much to say."""
        apart = 0.01 if name == 'dense' else 0.003
        return paired_difference([ap and ap - apart, ap and ap + apart], [0.3, 0.3])

    def make(name='detectors', kinds=('bbox', 'segm'), names=('dense', 'up', 'vanilla')):
        folder, rows = tmp_path / name, []
        for backbone in names:
            checkpoint = {'up': 'classifiers/compensated/seed0/epoch_3.pth', 'dense': 'dense.pth'}.get(backbone)
            ap = AP.get(backbone, 0.2)
            mean = {
                f'{kind}_mAP{end}': share and share * ap / n
                for n, kind in enumerate(('bbox', 'segm'), 1)
                for end, share in AREAS.items()
            }
            row = {
                'name': backbone,
                'arch': {'name': None},
                'checkpoint': checkpoint and str(tmp_path / checkpoint),
                'runs': [],
                'mean': mean,
            }
            row |= {'sha256': checkpoint and backbone[0] * 64}
            row['std'] = {key: value and 0.01 for key, value in mean.items()}
            params = PARAMS.get(backbone, 1)
            macs = MACS.get(backbone, 1)
            row |= {'macs': macs, 'detector_macs': macs + 10**6, 'backbone_params': params, 'params': params + HEADS}
            row['over_baseline'] = {key: over(backbone, value) for key, value in mean.items()}
            for seed in (0, 1):
                place = f'{backbone}/seed{seed}'
                (folder / place).mkdir(parents=True)
                (folder / place / 'predictions.json').write_text(json.dumps(predictions(backbone)))
                kind = 'MaskRCNN' if 'segm' in kinds else 'RetinaNet'
                config = CONFIG.format(kind=kind, root=str(digits_folder), classes=CLASSES)
                (folder / place / 'config.py').write_text(config)
                run = {'seed': seed, 'curve': [None, ap - 0.1, ap], 'predictions': f'{place}/predictions.json'}
                run |= {'checkpoint': f'{place}/epoch_3.pth', 'checkpoint_sha256': f'{backbone}{seed}'}
                run['metrics'] = {key: value and value + 0.01 * (2 * seed - 1) for key, value in mean.items()}
                row['runs'].append(run)
            rows.append(row)
        content = {'command': f'compare {name}', 'upvit_mm_version': '0', 'config_sha256': 'c' * 64, 'machine': 'CPU'}
        content |= {'processes': 1, 'trained': True, 'seeds': [0, 1], 'epochs': 3, 'baseline': names[-1]}
        content |= {'kinds': kinds, 'size': [96, 128], 'rows': rows}
        latency = {'median': 0.02, 'low': 0.0151, 'high': 0.0349, 'runs': 10}
        speed = {'latency': latency, 'throughput': 62.5, 'peak_bytes': 3 * 2**20}
        settings = {'device': 'a chip', 'threads': 2, 'torch': '2', 'size': [96, 128], 'batch': 4, 'repeats': 10}
        content['speed'] = {'settings': settings, 'detectors': dict.fromkeys(names, speed)}
        (folder / 'detectors.json').write_text(json.dumps(content))
        return folder

    return make


@pytest.fixture
def classifiers(tmp_path):
    """A folder of ``tools/compare_classifiers.py``."""
    rows = []
    for key, mean, reached in (('vanilla', 80.25, 3), ('compensated', 85.5, None)):
        row = {'key': key, 'title': f'the {key}', 'epochs': 3, 'mean': mean, 'std': 0.5, 'over_vanilla': mean - 80.25}
        row |= {'interval': [mean - 81, mean - 79.5], 'established': mean > 81}
        row |= {
            'start': None,
            'top1': {'0': mean},
            'seconds_per_step': None,
            'epochs_to_vanilla': reached,
            'curve': [50.0, mean],
            'curves': [[50.0, mean]],
        }
        rows.append(row)
    content = {'goal': 'budget macs=25%', 'options': {'epochs': 3, 'seeds': [0], 'train_images': None}, 'rows': rows}
    content |= {'checkpoint': 'dense.pth', 'sha256': 'd' * 64, 'one_shot': {'compensated': {'kl': 1, 'top1': 70.0}}}
    content |= {'dense': {'top1': 90.0, 'macs': 8e6, 'params': 5e5}, 'target': {'macs': 2e6, 'params': 1e5}}
    content |= {'step_times': {}, 'size': [32, 48]}
    (tmp_path / 'classifiers').mkdir()
    (tmp_path / 'classifiers/compare.json').write_text(json.dumps(content))
    return tmp_path / 'classifiers'


@pytest.fixture
def plan(tiny_arch):
    """Of a tiny DeiT: 9 of 45 channels, 5 of 50 hidden ones in block 0; attention of block 2, FFN of block 1 went."""
    kept = {'stages.0.embed': range(9), 'stages.0.blocks.0.mlp_hidden': range(5)}
    arch = ArchSpec.from_dict(tiny_arch('deit'))
    return make_plan(arch, kept, [[(0, 0), (1, 2), (3, 3), (4, 4)]])


@pytest.fixture
def pruning(tmp_path, plan):
    """A folder of ``tools/prune.py``."""
    content = {'goal': 'arch', 'method': 'fisher', 'settings': {'head_policy': 'within', 'seed': 7}, 'images': 10}
    content |= {'checkpoint': 'dense.pth', 'sha256': 'd' * 64, 'held_out': {'sliced': {'kl': 0.125, 'top1': 60.0}}}
    content['costs'] = {'dense': {'params': 4000}, 'pruned': {'params': 1000}}
    plan.save(tmp_path / 'pruning/plan.json')
    (tmp_path / 'pruning/report.json').write_text(json.dumps(content))
    return tmp_path / 'pruning'


@pytest.fixture
def in_place(tmp_path):
    """A folder of ``tools/prune.py`` for the dense detector of the second seed; the sliced one detects nothing."""
    found = {'dense': 0.41, 'sliced': None, 'compensated': 0.375}
    held_out = {
        name: {f'coco/{kind}_mAP{end}': ap for kind in ('bbox', 'segm') for end in ('', '_50')} if ap else {}
        for name, ap in found.items()
    }
    content = {'goal': 'budget macs=50%@96x128', 'method': 'fisher', 'settings': {'seed': 7}, 'sha256': 'e' * 64}
    content |= {'checkpoint': 'dense/seed1/epoch_3.pth', 'held_out': held_out, 'command': 'cut'}
    costs = {'dense': {'macs@96x128': MACS['dense'], 'params': PARAMS['dense']}}
    content['costs'] = costs | {'pruned': {'macs@96x128': 4_000_000, 'params': 300_000}}
    (tmp_path / 'in_place').mkdir()
    (tmp_path / 'in_place/report.json').write_text(json.dumps(content))
    return tmp_path / 'in_place'


@pytest.fixture
def consistency(tmp_path):
    """A folder of ``tools/compare_consistency.py``: two networks with two seeds, one whose CKA is not defined."""
    figures = {'up 0': 0.8, 'up 1': 0.9, 'less 0': 0.5, 'less 1': 0.58, 'vanilla': float('nan')}
    stages = {n: {'stage 0': {'cka': 1.0}, 'stage 1': {'cka': value}} for n, value in figures.items()}
    for found in stages.values():
        for stage in found.values():
            stage |= {'grid': [2, 3], 'tokens': 6}
    stages['vanilla']['stage 1']['r2'] = stages['vanilla']['stage 0']['r2'] = 0.25
    picture = Figure(figsize=(2, 1))
    picture.subplots().plot([0, 1])
    content = {'results': {n: {'64x96': s} for n, s in stages.items()}, 'macs': {n: {'64x96': 4e6} for n in figures}}
    groups = {'up': ['up 0', 'up 1'], 'less': ['less 0', 'less 1'], 'vanilla': ['vanilla']}
    content |= {'groups': groups, 'over': differences(content['results'], groups), 'settings': {'images': 5}}
    content['command'] = 'look'
    write_contrast(tmp_path / 'consistency', content, {'contrast.png': picture})
    return tmp_path / 'consistency'


@pytest.fixture
def everything(detectors, classifiers, pruning, consistency):
    """Arguments of ``write_page`` that give all sections."""
    return {
        'detectors': [detectors('retinanet', ('bbox',)), detectors('mask-rcnn')],
        'classifiers': classifiers,
        'pruning': pruning,
        'consistency': consistency,
        'notes': ['A note.'],
        'commands': ['first'],
    }
