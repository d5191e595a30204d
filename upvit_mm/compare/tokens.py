"""Compare networks: how consistent their tokens are with those of the dense one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from upvit_mm.arch.size import Size, size_text
from upvit_mm.compare.contestants import Contestant
from upvit_mm.compare.paired import how_differences, paired_difference
from upvit_mm.compare.seeds import Groups
from upvit_mm.compare.token_dropping import drop_tokens
from upvit_mm.compare.validity import check_predictors
from upvit_mm.consistency import contrast
from upvit_mm.consistency.measure import Report, Results
from upvit_mm.consistency.metrics import METRICS
from upvit_mm.data.image_files import ImageFiles
from upvit_mm.models.network import Network, load_network

DROPPING = 'token dropping, {}'
ONE_DENSE = 'All networks are compared with one dense network: how results vary with it is not in the spread.'


@dataclass(frozen=True)
class Field:
    """Networks that are compared with one dense network.

    Attributes:
        dense: the reference.
        networks: by a name that includes the seed.
        groups: names of ``networks`` by title; those of one title differ only in the seed.
    """

    dense: Network
    networks: dict[str, Network]
    groups: dict[str, list[str]]

    @classmethod
    def of(
        cls,
        cfg: Config,
        checkpoint: str,
        contestants: Sequence[Contestant],
        fills: Sequence[str] = (),
        equal_to: str | None = None,
        device: str = 'cpu',
    ) -> Field:
        """Load everything.

        Args:
            cfg: config of the dense classifier or detector; the others use its preprocessing.
            checkpoint: its weights.
            contestants: the other networks; those of one name are seeds of one row.
            fills: ways to fill dropped tokens of the dense network; each is a row.
            equal_to: title of the row whose MACs token dropping has, at every size; None = the first one.
            device: device of all networks.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a checkpoint that does not fit or is not given, or an ``equal_to`` that is not a title.
        """
        dense = load_network(cfg, checkpoint, device=device)
        groups = groups_of(contestants)
        left = {title: iter(names) for title, names in groups.items()}
        networks = {}
        for entry in contestants:
            if entry.checkpoint is None:
                raise ValueError(f'networks: {entry.name} has no checkpoint; give {entry.name}=ARCH,CHECKPOINT.')
            networks[next(left[entry.name])] = load_network(cfg, entry.checkpoint, arch=entry.arch, device=device)
        if fills:
            title = next(iter(groups)) if equal_to is None else equal_to
            if title not in groups:
                raise ValueError(f'equal_macs = {title!r}: must be one of {", ".join(groups)}.')
            target = networks[groups[title][0]].arch
            for fill in fills:
                name = DROPPING.format(fill)
                networks[name], groups[name] = drop_tokens(dense, target, fill), [name]
        return cls(dense, networks, groups)

    def compare(
        self, images: ImageFiles, sizes: Sequence[Size], seed: int = 0, report: Report | None = None
    ) -> dict[str, Any]:
        """The content for ``write_contrast``: ``results``, ``groups``, ``macs``, ``dense``, ``networks`` and, with
        several rows, ``over``.

        Raises:
            ValueError: see ``contrast``.
        """
        results = contrast(self.dense, self.networks, images, sizes, seed=seed, report=report)
        content = {
            'dense': self.dense.record,
            'networks': {name: network.record for name, network in self.networks.items()},
            'groups': self.groups,
            'macs': {n: {size_text(s): net.macs(s) for s in sizes} for n, net in self.networks.items()},
            'results': results,
        }
        return content | ({'over': differences(results, self.groups)} if len(self.groups) > 1 else {})


def differences(results: Mapping[str, Results], groups: Groups) -> dict[str, Any]:
    """The difference of each row to the first one, by seed: networks are paired in the order of their rows.

    Token dropping has no seed: its only network is compared with each network of the first row.

    Args:
        results: of ``contrast``, by network.
        groups: names of networks by title of their row.

    Returns:
        ``to``, title of the first row; ``how``, a caption; ``rows``, results of ``paired_difference`` by title, size,
        stage and measure.
    """
    first, *others = groups
    rows, how = {}, [how_differences(len(groups[first])), ONE_DENSE]
    for title in others:
        names = list(groups[title])
        if title.startswith(DROPPING.format('')):
            names *= len(groups[first])
        if len(names) != len(groups[first]) > 1:
            how.append(f'{title} has {len(names)} of the {len(groups[first])} seeds of {first}: others have no pair.')
        rows[title] = _over([(results[name], results[other]) for name, other in zip(names, groups[first])])
    return {'to': first, 'how': ' '.join(how), 'rows': rows}


def _over(pairs: Sequence[tuple[Results, Results]]) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """The difference of the pairs, by size, stage and measure that both sides have."""
    return {
        size: {
            stage: {
                name: paired_difference(*zip(*([side[size][stage][name] for side in pair] for pair in pairs)))
                for name in METRICS
                if all(name in side[size][stage] for side in pairs[0])
            }
            for stage in stages
        }
        for size, stages in pairs[0][0].items()
    }


def groups_of(contestants: Sequence[Contestant]) -> dict[str, list[str]]:
    """Names of networks by title: the title itself, or with a number if it occurs several times."""
    count = Counter(entry.name for entry in contestants)
    return {title: [title] if n == 1 else [f'{title} {k}' for k in range(n)] for title, n in count.items()}


def predictors_of(groups: Groups, ap: Mapping[str, float]) -> dict[str, Sequence[str]]:
    """The predictors of AP: a row as the mean of its seeds, or each of its networks if these have an AP instead.

    Args:
        groups: result of ``groups_of``, without rows of token dropping, for which there are no detectors.
        ap: result of ``read_ap``, by backbone.

    Returns:
        Names of networks by name in ``ap``.

    Raises:
        ValueError: see ``check_predictors``.
    """
    predictors: dict[str, Sequence[str]] = {}
    for title, names in groups.items():
        by_seed = title not in ap and all(name in ap for name in names)
        predictors |= {name: [name] for name in names} if by_seed else {title: names}
    check_predictors(predictors, ap)
    return predictors


def read_ap(path: str | Path, metric: str) -> dict[str, float]:
    """Mean over seeds of an AP by backbone, from a file of ``tools/compare_detectors.py``.

    Args:
        path: a ``detectors.json``.
        metric: its name, such as ``'bbox_mAP'``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, no such metric in it, or one without a value (no objects of that size).
    """
    text = Path(path).read_text(encoding='utf-8')
    try:
        means = {row['name']: row['mean'] for row in json.loads(text)['rows']}
    except (ValueError, TypeError, KeyError):
        raise ValueError(f'{str(path)!r} is not a detectors.json of tools/compare_detectors.py.') from None
    for name, mean in means.items():
        if metric not in mean:
            raise ValueError(f'{str(path)!r}: {name} has no {metric}; known: {", ".join(mean)}.')
        if mean[metric] is None:
            known = ', '.join(key for key, value in mean.items() if value is not None)
            raise ValueError(
                f'{str(path)!r}: {metric} of {name} is null: the data set has no objects of that size. '
                f'Take one that has a value: {known}.'
            )
    return {name: float(mean[metric]) for name, mean in means.items()}
