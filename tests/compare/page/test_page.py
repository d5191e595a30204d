"""``report.html``: what stands in it, and that a browser shows it whole."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from pycocotools.coco import COCO

from upvit_mm.compare.cells import Figure
from upvit_mm.compare.classifier_table import ClassifierTable
from upvit_mm.compare.detector_table import UNCOUNTED
from upvit_mm.compare.page.sources import DetectorRuns
from upvit_mm.compare.page.tables import kept_widths, last_stage, top1_of
from upvit_mm.compare.token_report import EXPLAINED
from upvit_mm.compare.token_table import TokenTable

NOTHING, MINUS, TIMES = '\N{EN DASH}', '\N{MINUS SIGN}', '\N{MULTIPLICATION SIGN}'
ANNOTATIONS = '/annotations/instances_val.json'


def test_figures_are_those_of_the_files(write, everything):
    page = write(**everything)
    costs = {'dense': ['8.00 M 100.0 %', '500.00 k 100.0 %'], 'up': ['2.00 M 25.0 %', '125.00 k 25.0 %']}
    box = {'dense': ['40.0 ± 1.0', f'+10.0 [{MINUS}2.7, +22.7]', '40.0 ± 1.0']}
    box['up'] = ['35.0 ± 1.0', '+5.0 [+1.2, +8.8]', '35.0 ± 1.0']
    mask = {'dense': ['20.0 ± 1.0', f'{MINUS}10.0 [{MINUS}22.7, +2.7]', '20.0 ± 1.0']}
    mask['up'] = ['17.5 ± 1.0', f'{MINUS}12.5 [{MINUS}16.3, {MINUS}8.7]', '17.5 ± 1.0']
    for name, top1 in (('dense', '90.0'), ('up', '85.5 ± 0.5')):
        assert page.row('result-caption', name) == [top1, *box[name], *box[name], *mask[name], *costs[name]]
    assert page.row('result-caption', 'vanilla')[:4] == [NOTHING, '30.0 ± 1.0', NOTHING, '30.0 ± 1.0']
    columns = [(f'{kind} AP', 'over vanilla', f'{kind} AP50') for kind in ('box', 'box', 'mask')]
    assert page.tables['result-caption'][1] == [name for group in columns for name in group]
    compensated = ['3', '85.50 ± 0.50', '+5.25 [+4.50, +6.00]', 'not reached']
    assert page.row('classification-caption', 'the compensated')[:4] == compensated
    assert page.row('classification-caption', 'the vanilla')[2] == NOTHING
    assert page.row('classification-caption', 'the compensated')[4:] == ['2.00 M 25.0 %', '100.00 k 20.0 %']
    assert page.row('classification-caption', 'the vanilla')[3] == '3'
    assert "MACs at 32x48 and parameters with the classifier's head" in ' '.join(page.text.split())
    assert page.row('widths-caption', '0') == ['24 of 24', '12 of 12', '5 of 50']
    assert page.row('widths-caption', 'stage 0') == ['embedding 9 of 45', 'blocks 4 of 5']
    assert page.row('costs-caption', 'params') == ['4.00 k', '1.00 k', '25.0 %']
    assert page.row('one-shot-caption', 'sliced') == ['0.1250', '60.00']
    assert page.tables['consistency-caption-1'][:2] == [
        ['network', 'MACs', 'with the dense network', 'over up'],
        ['CKA', 'R2', 'CKA', 'R2'],
    ]
    assert page.row('consistency-caption-1', 'up') == ['4.00 M', '0.850 ± 0.071', NOTHING, NOTHING, NOTHING]
    over = f'{MINUS}0.310 [{MINUS}0.437, {MINUS}0.183]'
    assert page.row('consistency-caption-1', 'less') == ['4.00 M', '0.540 ± 0.057', NOTHING, over, NOTHING]
    assert page.row('consistency-caption-1', 'vanilla') == ['4.00 M', NOTHING, '0.250', NOTHING, NOTHING]
    assert page.row('hashes-caption', 'backbone up')[1] == 'u' * 64
    for line in ('first', 'compare retinanet', 'compare mask-rcnn', 'look'):
        assert f'<code>{line}</code>' in page.text
    assert f'seeds 0, 1, 1 {TIMES} CPU' in ' '.join(page.text.split())


def test_only_what_is_established_is_bold(write, everything):
    page = write(**everything)
    bold = re.findall('<strong>(.*?)</strong>', page.text)
    up = ['+5.0', '+5.0', f'{MINUS}12.5']  # of two detectors, the second with masks; the dense one is uncertain
    assert bold == [*up, '+5.25', f'{MINUS}0.310']
    text = ' '.join(page.text.split())
    assert text.count('Bold: the interval is wholly above or below 0.') == 2  # detectors and consistency
    assert text.count('one dense network and one pruning of it') == 1
    assert text.count('dense, up: all seeds start from the same weights') == 2


def test_one_seed_is_no_gain(write, detectors, classifiers):
    folder = detectors(names=['up', 'vanilla'])
    content = json.loads((folder / 'detectors.json').read_text())
    for row in content['rows']:
        del row['runs'][1]
        row['over_baseline'] = {key: {**over, 'interval': None} for key, over in row['over_baseline'].items()}
    (folder / 'detectors.json').write_text(json.dumps(content | {'seeds': [0]}))
    page = write(detectors=[folder])
    assert page.row('result-caption', 'up')[1] == '+5.0 one seed'
    assert 'One seed: there is no interval, so no gain and no loss is established.' in page.text
    assert 'One training of each' in page.text
    assert '<strong>' not in page.text
    assert 'over seeds' not in page.text  # neither a spread nor a range
    assert '(MaskRCNN: 3 epochs, seed 0)' in page.text


def test_ap_by_area_costs_and_speed(write, everything):
    page = write(**everything)
    dense = ['40.0 ± 1.0', '40.0 ± 1.0', '20.0 ± 1.0', '8.0 ± 1.0', '24.0 ± 1.0', NOTHING]
    masks = ['20.0 ± 1.0', '20.0 ± 1.0', '10.0 ± 1.0', '4.0 ± 1.0', '12.0 ± 1.0', NOTHING]
    columns = ['AP', 'AP50', 'AP75', 'S', 'M', 'L']
    assert page.tables['ap-caption-1'][:2] == [['backbone', 'box'], columns]
    assert page.tables['ap-caption-2'][:2] == [['backbone', 'box', 'mask'], columns * 2]
    assert page.row('ap-caption-1', 'dense') == dense
    assert page.row('ap-caption-2', 'dense') == dense + masks
    header = ['backbone', 'MACs', 'all MACs', 'backbone parameters', 'all parameters', 'latency, ms', 'images/s']
    header.append('peak, MiB')
    for n in (1, 2):
        assert page.tables[f'speed-caption-{n}'][0] == header
        costs = page.row(f'speed-caption-{n}', 'up')
        assert costs == ['2.00 M', '3.00 M', '125.00 k', '375.00 k', '20.0 15.1\N{EN DASH}34.9', '62.5', '3.0']
    how = 'on a chip, 2 threads, with the first seed&#39;s weights: latency of one image, median and quartiles of 10'
    assert ' '.join(page.text.split()).count(how) == 2


def test_without_speed(write, detectors):
    folder = detectors(names=['up'])
    content = json.loads((folder / 'detectors.json').read_text())
    (folder / 'detectors.json').write_text(
        json.dumps(content | {'speed': None, 'data': {'test': ['cells/val.json', 'more/val.json']}})
    )
    page = write(detectors=[folder])
    assert page.tables['speed-caption-1'][1:] == [['up', '2.00 M', '3.00 M', '125.00 k', '375.00 k']]
    assert '; AP on the test data (cells/val.json, more/val.json). ' in page.text
    assert 'Speed was not measured.' in page.text


def test_what_was_measured_is_written_down(write, detectors):
    """Data, pictures, epochs, seeds, and what each row is."""
    folder = detectors(names=['up', 'vanilla'])
    content = json.loads((folder / 'detectors.json').read_text())
    content |= {'data': {'train': ['train.json'], 'test': ['val.json']}, 'pictures': {'train': 373, 'test': 97}}
    content['rows'][0]['arch']['name'] = 'pvtv2-b0'
    content['rows'][1]['detector_macs'] = None
    (folder / 'detectors.json').write_text(json.dumps(content))
    page = write(detectors=[folder])
    text = ' '.join(re.sub('<[^>]*>', '', page.text).split())
    assert 'AP in % on 97 test pictures, mean ± standard deviation over seeds (MaskRCNN: 3 epochs, seeds 0, 1).' in text
    assert '3 epochs, seeds 0, 1 on 373 pictures (train.json); AP on 97 test pictures (val.json).' in text
    weights = content['rows'][0]['checkpoint']
    assert f'up pvtv2-b0, from the weights {weights} vanilla, the baseline own architecture, from random we' in text
    assert 'on the first 2 annotated pictures of 2 in the test data' in text
    assert page.row('speed-caption-1', 'vanilla')[1] == NOTHING
    assert UNCOUNTED in html.unescape(page.text)
    (folder / 'detectors.json').write_text(json.dumps(content | {'trained': False, 'seeds': [], 'epochs': None}))
    text = write(detectors=[folder]).text
    assert 'Given checkpoints, only evaluated; AP on 97 test pictures (val.json).' in text
    assert 'the checkpoint <code>' in text
    assert UNCOUNTED not in html.unescape(write(detectors=[detectors('counted')]).text)


def test_a_colour_for_each_class(write, detectors):
    """The same in all columns, and a legend."""
    folder = detectors(names=['up'])
    page = write(detectors=[folder])
    keys = re.findall('<span class="key" style="background: (#[0-9a-f]{6})">(.*?)</span>', page.text)
    coco = COCO(re.search("data_root='(.*?)'", (folder / 'up/seed0/config.py').read_text()).group(1) + ANNOTATIONS)
    assert [name for _, name in keys] == sorted({coco.cats[a['category_id']]['name'] for a in coco.anns.values()})
    assert len({colour for colour, _ in keys}) == len(keys)


def test_measures_are_explained(write, consistency):
    text = write(consistency=consistency).text
    explained = re.findall(r'<dt>(CKA.*|relation|cosine|R2|kept error)</dt>\s*<dd>(.*)\.</dd>', text)
    assert explained == [('CKA', EXPLAINED['cka']), ('R2', EXPLAINED['r2'])]  # those that the folder has


def test_it_is_one_whole_accessible_page(write, everything):
    page = write(**everything)
    assert [len(page.all(tag)) for tag in ('h1', 'main', 'header', 'nav', 'title', 'script', 'link')] == [1] * 5 + [
        0,
        0,
    ]
    references = re.findall(r'(?:src|href|url)\s*(?:=\s*["\']?|\()([^"\'>) ]+)', page.text)
    assert len(references) > 20
    assert {reference.partition(':')[0] for reference in references if reference[0] != '#'} == {'data'}
    ids = [attributes['id'] for _, attributes in page.tags if 'id' in attributes]
    assert len(ids) == len(set(ids))
    pointed = [
        a[key].lstrip('#') for _, a in page.tags for key in ('href', 'aria-labelledby', 'xlink:href') if key in a
    ]
    assert set(pointed) <= set(ids)
    pictures = page.all('img')
    assert len(pictures) == 1 + 2 * 2 * 4  # of consistency; detectors x pictures x (ground truth, 3 backbones)
    assert all(a['alt'] and a['src'].startswith('data:image/') for a in pictures)
    assert [a['alt'] for a in pictures if a['alt'].startswith('up, 000001.png: 0 0.70')]
    charts = [a['aria-label'] for a in page.all('div') if a.get('role') == 'img']
    assert len(charts) == page.text.count('<svg') == 2 + 3 + 2
    assert charts[0] == 'box AP against MACs of the backbone: dense 40.0 % at 8.00 M; up 35.0 % at 2.00 M; ' + (
        'vanilla 30.0 % at 2.00 M.'
    )
    assert '#000000' not in page.text  # black is left to the page: it would not show on a dark one
    assert len(page.all('table')) == len(page.all('caption'))
    assert all(a.get('scope') in ('col', 'row', 'colgroup', 'rowgroup') for a in page.all('th'))
    assert len(page.text) < 500_000


def test_the_same_files_give_the_same_page(write, everything):
    assert write(**everything).text == write(**everything).text


SECTIONS = {
    'detectors': ['result', 'detection', 'pictures'],
    'classifiers': ['classification'],
    'pruning': ['widths'],
    'consistency': ['consistency'],
}


@pytest.mark.parametrize('given', SECTIONS)
def test_a_section_needs_its_files(write, everything, given):
    page = write(**{given: everything[given]})
    assert [a['id'] for a in page.all('h2')] == [*SECTIONS[given], 'reproduce']
    assert page.text.count('(multiply-accumulates)') == 1
    assert page.text.index('MACs') == page.text.index('MACs (multiply-accumulates)')
    assert [a['href'] for a in page.all('a')] == ['#main', *(f'#{name}' for name in SECTIONS[given]), '#reproduce']


def test_words_are_never_markup(write, detectors):
    names = ['<b>&"\'', 'vanilla']
    folder = detectors('a&b<i>', names=names)
    page = write('<script>alert(1)</script>', detectors=[folder], notes=['<u>'])
    assert not {'b', 'i', 'u', 'script'} & {tag for tag, _ in page.tags}
    assert page.row('result-caption', names[0])[0] == '20.0 ± 1.0'
    assert [a for a in page.all('img') if a['alt'] == f'{names[0]}, 000001.png: nothing above 0.3']


def test_a_backbone_alone_is_compared_with_nothing(write, detectors):
    """Beside a comparison of three: without differences and without a plot of costs."""
    page = write(detectors=[detectors('three'), detectors('one', names=['up'])])
    columns = ['box AP', 'over vanilla', 'box AP50', 'mask AP', 'over vanilla', 'mask AP50']
    assert page.tables['result-caption'][1] == [*columns, 'box AP', 'box AP50', 'mask AP', 'mask AP50']
    assert page.row('result-caption', 'up')[6:10] == ['35.0 ± 1.0', '35.0 ± 1.0', '17.5 ± 1.0', '17.5 ± 1.0']
    assert page.row('result-caption', 'dense')[6:10] == [NOTHING] * 4
    charts = [a['aria-label'] for a in page.all('div') if a.get('role') == 'img']
    assert [chart.partition(' ')[0] for chart in charts] == ['box', 'mask', 'Box', 'Box']


def test_two_of_one_detector_are_told_apart(write, detectors):
    folders = [detectors('short', names=('dense', 'vanilla')), detectors('long', names=('up', 'vanilla'))]
    page = write(detectors=folders)
    assert page.tables['result-caption'][0][1:3] == ['MaskRCNN in short', 'MaskRCNN in long']
    assert [row[0] for row in page.tables['result-caption'][2:]] == ['dense', 'vanilla', 'up']
    assert page.row('result-caption', 'up')[:7] == [NOTHING] * 6 + ['35.0 ± 1.0']


def test_a_detector_pruned_in_place_is_beside_the_trained_ones(write, everything, in_place):
    """Only in the columns of its own detector, and against the baseline of its own seed."""
    page = write(**everything, in_place=in_place)
    names = [row[0] for row in page.tables['result-caption'][2:]]
    assert names == ['dense', 'up', 'vanilla', 'dense in place, sliced', 'dense in place, repaired']
    costs, others = ['4.00 M 50.0 %', '300.00 k 60.0 %'], [NOTHING] * 6
    repaired = page.row('result-caption', 'dense in place, repaired')
    assert repaired == [NOTHING, '37.5', '+6.5 one seed', '37.5', *others, *costs]
    sliced = page.row('result-caption', 'dense in place, sliced')
    assert sliced == [NOTHING, '0.0', f'{MINUS}31.0 one seed', '0.0', *others, *costs]
    text = ' '.join(page.text.split())
    assert (
        'In place: the RetinaNet trained on dense, seed 1 (box AP 41.0), with its backbone pruned (budget macs' in text
    )
    commands = re.findall('<code>(.*?)</code></pre>', page.text)
    assert commands.index('compare mask-rcnn') + 1 == commands.index('cut')
    assert 'budget macs=50%@96x128; method fisher, seed 7' in text


def test_in_place_at_another_size_has_no_macs(write, detectors, in_place):
    report = json.loads((in_place / 'report.json').read_text())
    report['costs'] = {key: {'macs@64x64': 1, 'params': 300_000} for key in ('dense', 'pruned')}
    (in_place / 'report.json').write_text(json.dumps(report))
    page = write(detectors=[detectors()], in_place=in_place)
    cells = page.row('result-caption', 'dense in place, repaired')
    assert cells == ['37.5', '+6.5 one seed', '37.5', '37.5', '+21.5 one seed', '37.5', NOTHING, '300.00 k 60.0 %']


def test_top1_of_a_backbone(classifiers, detectors):
    compared = ClassifierTable.of({**json.loads((classifiers / 'compare.json').read_text()), 'folder': classifiers})
    dense, up, vanilla = DetectorRuns(detectors()).table.rows
    assert top1_of(dense, compared) == Figure(90.0)
    assert top1_of(up, compared) == Figure(85.5, 0.5)
    assert top1_of(vanilla, compared) is None
    for name, top1 in (('pruning/pruned.pth', 70.0), ('pruning/sliced.pth', None), ('../other.pth', None)):
        found = top1_of(replace(up, checkpoint=str(classifiers / name)), compared)
        assert (found and found.mean) == top1


def test_a_block_that_went_keeps_nothing(plan):
    (stage,) = kept_widths(plan)
    assert [[width['kept'] for width in block] for block in stage['blocks']] == [
        [24, 12, 5],
        [10, 30, 0],
        [0, 0, 64],
        [16, 32, 31],
        [30, 9, 40],
    ]
    assert stage['embed'] == {'kept': 9, 'dense': 45, 'share': 20.0}
    assert stage['blocks'][0][2]['share'] == 10.0


def test_networks_without_groups_are_rows_of_their_own(consistency):
    contrast = json.loads((consistency / 'contrast.json').read_text())
    del contrast['groups'], contrast['macs'], contrast['over']
    found = TokenTable.of(contrast)
    (size,) = found.sizes
    table = last_stage(found, size)
    names = ['up 0', 'up 1', 'less 0', 'less 1', 'vanilla']
    assert [(row[0], row[1].value) for row in table.rows] == [(name, None) for name in names]
    assert [(cell.mean, cell.std) for cell in table.rows[1][2:]] == [(0.9, None), (None, None)]


def test_every_size_has_its_table(write, consistency):
    """With rows over several seeds at each."""
    content = json.loads((consistency / 'contrast.json').read_text())
    for found in (*content['results'].values(), *content['macs'].values(), *content['over']['rows'].values()):
        found['128x192'] = found['64x96']
    (consistency / 'contrast.json').write_text(json.dumps(content))
    page = write(consistency=consistency)
    assert page.tables['consistency-caption-2'] == [
        [cell.replace(' (multiply-accumulates)', '') for cell in row] for row in page.tables['consistency-caption-1']
    ]


FRAME = """<body><iframe width="390" height="844" style="border: 0" srcdoc="{}" onload="
    const page = this.contentDocument;
    document.title = 'measured ' + JSON.stringify({{
        width: page.documentElement.scrollWidth,
        broken: [...page.images].filter(image => !image.naturalWidth).length,
        images: page.images.length}})"></iframe>"""


@pytest.fixture
def show(tmp_path):
    """``show(text)``: what headless Chromium makes of a page 390 px wide, and its complaints."""
    names = ('chromium', 'chromium-browser', 'google-chrome')
    browser = next((path for name in names if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f'none of {", ".join(names)} is installed')

    def run(text: str) -> dict:
        (tmp_path / 'frame.html').write_text(FRAME.format(html.escape(text)))
        command = [browser, '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr', '--dump-dom']
        command += [f'--user-data-dir={tmp_path / "profile"}', (tmp_path / 'frame.html').as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
        found = re.search(r'<title>measured (.*?)</title>', done.stdout)
        assert found, done.stderr[-2000:]
        complaints = [line for line in done.stderr.splitlines() if 'CONSOLE' in line]
        return {**json.loads(html.unescape(found.group(1))), 'complaints': complaints}

    return run


def test_in_a_browser(show, write, everything):
    good = show(write(**everything).text)
    assert good.pop('width') <= 390
    assert good == {'broken': 0, 'images': 17, 'complaints': []}
    bad = show('<p style="width: 900px"><img src="data:image/png;base64,AA"><script>nothing()</script>')
    assert (bad['width'] >= 900, bad['broken'], len(bad['complaints'])) == (True, 1, 1)
