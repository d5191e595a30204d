"""The charts of the page can be read in grey."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

from upvit_mm.compare.classifier_table import ClassifierTable
from upvit_mm.compare.page.charts import classifier_charts, detector_charts
from upvit_mm.compare.page.sources import DetectorRuns

SVG = '{http://www.w3.org/2000/svg}'
LINK = '{http://www.w3.org/1999/xlink}href'


def legend_of(svg: str) -> tuple[list[str], list[str]]:
    """Outlines of the filled markers and dashes of the lines in a chart's legend, by row; no colours."""
    root = ET.fromstring(svg)
    by_id = {element.get('id'): element for element in root.iter() if element.get('id')}
    (legend,) = (element for name, element in by_id.items() if '-legend' in name)
    shapes = [by_id[use.get(LINK)[1:]].get('d').strip() for use in legend.iter(f'{SVG}use')]
    lines = [group for group in legend.iter(f'{SVG}g') if '-line2d' in group.get('id', '')]
    styles = [path.get('style') for line in lines for path in line.findall(f'{SVG}path')]
    dashes = [(re.findall('stroke-dasharray: ([^;]*)', style) or ['solid'])[0] for style in styles]
    return [shape for shape in shapes if shape.endswith('z')], dashes  # the caps of error bars are open


def test_rows_differ_without_colour(detectors, classifiers):
    compared = ClassifierTable.of(json.loads((classifiers / 'compare.json').read_text()))
    box, mask, curves = (legend_of(chart['svg']) for chart in detector_charts(DetectorRuns(detectors()).table, 'd'))
    top1, epochs = (legend_of(chart['svg']) for chart in classifier_charts(compared))
    for markers, _ in (box, mask, curves, top1):
        assert len(markers) == len(set(markers)) == 3
    for _, dashes in (curves, epochs):
        assert len(dashes) == len(set(dashes)) == 3
    assert box[0] == curves[0]  # a backbone has one look
    assert top1[0][1:] == epochs[0]  # dense, the first, is a dotted line there
    assert 'solid' in epochs[1]
