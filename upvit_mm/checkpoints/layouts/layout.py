"""What a layout is: the tensor names of one family in one code base, as a table of rules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from upvit_mm.checkpoints.steps import Step

Slot = tuple[int, int]  # (part, parts)

PLACEHOLDERS = {'{j}': r'(?P<j>\d+)', '{p}': r'(?P<p>weight|bias)'}


@dataclass(frozen=True)
class Rule:
    """One of our tensors, or a group of them, and its name in another layout.

    Attributes:
        ours, theirs: templates of names. ``{j}`` is a block number, ``{p}`` is ``weight`` or ``bias``.
        slot: ``(k, n)``: ours is the k-th of n equal parts of theirs along axis 0 (fused q, k, v).
        conv1x1: theirs is a 1x1 convolution, ours the equal Linear.
        ffn: of networks with this ``ArchSpec.ffn`` only; empty for all.
    """

    ours: str
    theirs: str
    slot: Slot = (0, 1)
    conv1x1: bool = False
    ffn: str = ''


@dataclass(frozen=True)
class Layout:
    """The tensor names of one family in one code base.

    Attributes:
        name: its name in messages.
        family: family of the arch that it describes.
        markers: keys that only this layout has all of, as far as layouts before it in ``LAYOUTS`` are ruled out.
        rules: every backbone tensor.
        steps: what is more than a new name, in the order of reading.
        dropped: patterns of backbone-level keys that have no place in our backbones, with the reason.
        spellings: regular expressions of other forms of names, with the form that the rules use.
    """

    name: str
    family: str
    markers: tuple[str, ...]
    rules: tuple[Rule, ...]
    steps: tuple[Step, ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()

    def spelled(self, key: str) -> str:
        """A key in the form that the rules use."""
        for expression, form in self.spellings:
            key = re.sub(expression, form, key)
        return key

    def describes(self, keys: Iterable[str]) -> bool:
        """Whether a backbone's keys have all markers."""
        return {self.spelled(key) for key in keys}.issuperset(self.markers)

    def prefixes(self, keys: Iterable[str]) -> Iterator[str]:
        """The text before each first marker in the keys of a larger state dict."""
        first = self.markers[0]
        for key in map(self.spelled, keys):
            if key == first or key.endswith(f'.{first}'):
                yield key.removesuffix(first)


def pattern(template: str) -> re.Pattern:
    """Regular expression that matches exactly the keys of a template."""
    expression = re.escape(template)
    for placeholder, group in PLACEHOLDERS.items():
        expression = expression.replace(re.escape(placeholder), group)
    return re.compile(expression + r'\Z')


def fill(template: str, groups: dict[str, str]) -> str:
    """The key of a template for the given block number and parameter name."""
    for name, value in groups.items():
        template = template.replace('{' + name + '}', value)
    return template


def same(ours: str, theirs: str, names: Iterable[str]) -> list[Rule]:
    """Modules that keep their name but have another parent."""
    return [Rule(f'{ours}{n}.{{p}}', f'{theirs}{n}.{{p}}') for n in names]


def renamed(names: dict[str, str], ffn: str = '') -> list[Rule]:
    """Modules with another name."""
    return [Rule(f'{a}.{{p}}', f'{b}.{{p}}', ffn=ffn) for a, b in names.items()]


def fused(ours: str, theirs: str, names: Iterable[str], ffn: str = '') -> list[Rule]:
    """Modules whose tensors are one in theirs, in this order."""
    names = tuple(names)
    return [Rule(f'{ours}{n}.{{p}}', theirs, slot=(i, len(names)), ffn=ffn) for i, n in enumerate(names)]


BLOCK_NAMES = ('norm1', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2')
