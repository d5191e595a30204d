"""Files that are damaged, missing, of an older version or not to be trusted."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

NOTHING, MINUS, TIMES = '\N{EN DASH}', '\N{MINUS SIGN}', '\N{MULTIPLICATION SIGN}'

MISTAKES = {
    'detectors/detectors.json': ('{"rows": [', r"detectors.json' is damaged .*; tools/compare_detectors.py writes it"),
    'detectors/dense/seed0/predictions.json': ('[3]', r"predictions.json' is damaged \(entry 0: .*compare_detectors"),
    'classifiers/compare.json': ('[1]', r"compare.json' (is damaged|lacks) .*tools/compare_classifiers.py"),
    'pruning/report.json': ('{"goal": 1}', r"report.json' lacks method; tools/prune.py of this version writes it"),
    'pruning/plan.json': ('{}', r"plan '.*plan.json' is damaged"),
    'consistency/contrast.json': ('{}', r"contrast.json' lacks results; tools/compare_consistency.py"),
}


@pytest.mark.parametrize('file', MISTAKES)
def test_damaged_and_missing_files(request, write, tmp_path, file):
    part, (text, message) = Path(file).parts[0], MISTAKES[file]
    given = request.getfixturevalue(part)
    arguments = {part: [given()] if part == 'detectors' else given}
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        write(**arguments)
    (tmp_path / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{Path(file).name}' does not exist; tools/\w+\.py writes it"):
        write(**arguments)
    assert not (tmp_path / 'report.html').exists()


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return self.mark.touch, ()


@pytest.mark.parametrize('name', ['predictions.pkl', 'predictions.json'])
def test_nothing_is_unpickled(write, detectors, tmp_path, name):
    """Neither what an older version wrote nor a pickle in the place of the JSON."""
    folder, mark = detectors(), tmp_path / 'mark'
    content = json.loads((folder / 'detectors.json').read_text())
    content['rows'][0]['runs'][0]['predictions'] = f'dense/seed0/{name}'
    (folder / 'detectors.json').write_text(json.dumps(content))
    (folder / 'dense/seed0' / name).write_bytes(pickle.dumps(Payload(mark)))
    told = {
        'predictions.pkl': r"predictions = 'dense/seed0/predictions.pkl': must be a predictions.json .* run tools/comp",
        'predictions.json': r"predictions.json' is damaged .*; tools/compare_detectors.py writes it",
    }
    with pytest.raises(ValueError, match=told[name]):
        write(detectors=[folder])
    assert not mark.exists()
    pickle.loads((folder / 'dense/seed0' / name).read_bytes())
    assert mark.exists(), 'the pickle of this test does nothing'


def test_predictions_lie_in_their_folder(write, detectors, tmp_path):
    folder = detectors()
    content = json.loads((folder / 'detectors.json').read_text())
    file = folder / 'dense/seed0/predictions.json'
    elsewhere = file.rename(tmp_path / 'predictions.json')
    (folder / 'link.d').symlink_to(tmp_path)
    for name in ('../predictions.json', str(elsewhere), 'link.d/predictions.json', 5):
        content['rows'][0]['runs'][0]['predictions'] = name
        (folder / 'detectors.json').write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r'runs\.predictions = .* must be a predictions\.json in that folder'):
            write(detectors=[folder])
    elsewhere.rename(file)
    content['rows'][0]['runs'][0]['predictions'] = 'dense/seed0/predictions.json'
    (folder / 'detectors.json').write_text(json.dumps(content))
    (tmp_path / 'work_dirs').symlink_to(tmp_path)  # a work dir that is reached through a link is fine
    assert write(detectors=[tmp_path / 'work_dirs/detectors']).row('result-caption', 'up')


@pytest.mark.parametrize('key', ['speed', 'params'])
def test_a_folder_of_an_older_version(write, detectors, key):
    folder = detectors()
    content = json.loads((folder / 'detectors.json').read_text())
    (content if key in content else content['rows'][0]).pop(key)
    (folder / 'detectors.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"detectors.json' lacks (rows\.)?{key}; tools/compare_detectors.py of this"):
        write(detectors=[folder])


def test_a_detector_pruned_in_place_needs_its_comparison(write, detectors, in_place):
    folder, report = detectors(), json.loads((in_place / 'report.json').read_text())
    for changes, message in (
        ({'checkpoint': 'dense/seed1/epoch_2.pth'}, r"in_place': .*'dense/seed1/epoch_2\.pth', is in none of the comp"),
        ({'held_out': {}}, r"in_place': the detector was not judged; run tools/prune\.py with --eval-images"),
    ):
        (in_place / 'report.json').write_text(json.dumps(report | changes))
        with pytest.raises(ValueError, match=message):
            write(detectors=[folder], in_place=in_place)
    (in_place / 'report.json').unlink()
    with pytest.raises(FileNotFoundError, match=r"report\.json' does not exist; tools/prune\.py writes it"):
        write(detectors=[folder], in_place=in_place)


def test_nothing_to_show(write):
    with pytest.raises(ValueError, match='a page needs at least one folder'):
        write()
