"""A spec can get new fields without calling older files damaged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from upvit_mm.arch import ArchSpec

FILE = Path(__file__).parent / 'files/version1.json'  # as version 0.1.0 wrote it


@dataclass(frozen=True)
class Newer(ArchSpec):
    """A later spec."""

    registers: int = 0


def test_a_file_of_today(tiny_arch, tmp_path):
    arch = ArchSpec.from_json(FILE)
    assert arch == ArchSpec.from_dict(tiny_arch('pvtv2'))
    assert arch.save_json(tmp_path / 'arch.json').read_bytes() == FILE.read_bytes()


def test_an_older_file_lacks_a_field(tmp_path):
    newer = Newer.from_json(FILE)
    assert newer.registers == 0
    assert {**newer.to_dict(), 'registers': 0} == {**ArchSpec.from_json(FILE).to_dict(), 'registers': 0}
    again = Newer.from_json(newer.save_json(tmp_path / 'arch.json'))
    assert again == newer


def test_a_newer_file_has_a_field_more(tmp_path):
    path = Newer.from_json(FILE).save_json(tmp_path / 'arch.json')
    with pytest.raises(ValueError, match=r'arch \(version 1\) has unknown key\(s\) registers; .* A newer upvit_mm may'):
        ArchSpec.from_json(path)


@pytest.mark.parametrize('field', ['depths', 'qk_scales', 'name', 'img_size'])
def test_a_changed_field_breaks_the_seal(field, tmp_path):
    content = json.loads(FILE.read_text())
    content['arch'][field] = {'depths': [1, 2, 2, 2], 'qk_scales': 0.5, 'name': 'other', 'img_size': 256}[field]
    path = tmp_path / 'arch.json'
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match='arch does not match its sha256: damaged, or edited by hand'):
        ArchSpec.from_json(path)
