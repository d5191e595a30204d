"""What an experiment found: figures of every row and seed, and paired differences."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy.stats import spearmanr

from upvit_mm.compare.paired import AP_STEP, paired_difference
from upvit_mm.evidence.classifier_steps import ClassifierPlan
from upvit_mm.evidence.detector_steps import DetectorPlan
from upvit_mm.evidence.steps import Plan
from upvit_mm.evidence.studies import RANKS, Row, Study
from upvit_mm.evidence.training_log import last_value, losses
from upvit_mm.workflow.record import TOP1, read_record

MEASURES = ('cka', 'relation', 'neighbours', 'procrustes', 'cosine', 'r2')
AT_ONCE = 'AP at once'  # beside MEASURES
CLAIMS = (  # row, the row to compare it with
    ('up-50', 'dense'),
    ('up-50', 'dense-on'),
    ('up-50', 'vanilla-50'),
    ('up-50', 'vanilla-50-long'),
    ('up-50', 'dropping-50'),
    ('up-50-alone', 'dense-on'),
    ('up-50-alone', 'up-50'),
    ('up-50-alone', 'dense'),
    ('up-50-alone', 'vanilla-50'),
    ('up-50-alone', 'vanilla-50-long'),
    ('up-50-alone', 'dropping-50'),
    ('up-50-alone', 'dropping-50-alone'),
    ('dropping-50', 'dense-on'),
    ('dropping-50-alone', 'dense-on'),
    ('dropping-50-alone', 'dropping-50'),
    ('up-50', 'magnitude-50'),
    ('up-50', 'random-50'),
    ('up-25', 'dense'),
    ('up-25', 'dense-on'),
    ('up-25', 'dropping-25'),
    ('dropping-25', 'dense'),
)


@dataclass
class Found:
    """The figures of a row with one seed; those that are not there yet are missing.

    Attributes:
        score: ``box AP``, ``mask AP`` or ``top-1``, in %.
        one_shot: the same before any training after pruning.
        consistency: measures of the last stage before that training, by name.
        costs: ``macs``, ``detector_macs``, ``params``, and ``latency`` in seconds.
        curve: by epoch of its training, the detector's own loss, or a classifier's top-1 in %; None = not known.
    """

    score: dict[str, float] = field(default_factory=dict)
    one_shot: dict[str, float] = field(default_factory=dict)
    consistency: dict[str, float] = field(default_factory=dict)
    costs: dict[str, float | None] = field(default_factory=dict)
    curve: list[float | None] = field(default_factory=list)


def found_in(plan: Plan) -> dict[str, Found]:
    """The figures of all rows of a study with one seed, by name of the row."""
    found = {row.name: Found() for row in plan.study.rows}
    read = _read_detectors if isinstance(plan, DetectorPlan) else _read_classifiers
    read(plan, found)
    return found


def _read_detectors(plan: DetectorPlan, found: Mapping[str, Found]) -> None:
    for rank, table in _by_rank(plan, 'evaluated{}/detectors.json'):
        speed = (table.get('speed') or {}).get('detectors', {}) if rank == 0 else {}  # beside the dense one
        named = {row.name for row in plan.study.rows if row.rank == rank}  # an older version may have had others
        for row in [row for row in table['rows'] if row['name'] in named]:
            own, (run,) = found[row['name']], row['runs']
            own.score |= _aps(run['metrics'], '')
            own.costs |= {key: row[key] for key in ('macs', 'detector_macs', 'params')}
            if row['name'] in speed:
                own.costs['latency'] = speed[row['name']]['latency']['median']
    for table in _tables(plan, '*-at-once/detectors.json'):
        for row in table['rows']:
            found[row['name']].one_shot |= _aps(row['runs'][0]['metrics'], '')
    for row in plan.study.rows:
        found[row.name].curve = losses(plan.folder / row.name / 'train')
        if row.how == 'pruned':
            for table in _tables(plan, f'{row.name}/pruned/report.json'):
                found[row.name].one_shot |= _aps(table['held_out'].get('compensated', {}), 'coco/')
    dropping_at = {row.shape_of: row.name for row in plan.study.rows if row.how == 'dropping' and row.taught}
    for table in _tables(plan, 'consistency*/contrast.json'):
        dropping = next((dropping_at[name] for name in table['results'] if name in dropping_at), None)
        for name, by_size in table['results'].items():
            *_, last = next(iter(by_size.values())).values()
            row = dropping if name.startswith('token dropping') else name  # at the cost of UP
            if row is not None:
                found[row].consistency |= {key: last[key] for key in MEASURES if key in last}


def _aps(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    kinds = {'bbox_mAP': 'box AP', 'segm_mAP': 'mask AP'}
    return {title: 100 * metrics[prefix + key] for key, title in kinds.items() if metrics.get(prefix + key) is not None}


def _read_classifiers(plan: ClassifierPlan, found: Mapping[str, Found]) -> None:
    for row in plan.study.rows:
        if row.how == 'dense':
            continue
        if row.how == 'continued':
            _read_continued(plan, row, found)
            continue
        for table in _tables(plan, f'{plan.comparison(row)}/compared/compare.json'):
            own, dense = found[row.name], table['dense']
            epochs = plan.study.epochs(row, plan.scale)  # compare.json has the rows of one rank alone
            *_, last = own.curve = read_record(plan.training(row), epochs, TOP1)[TOP1.name]
            own.score |= {} if last is None else {'top-1': last}
            if row.how == 'pruned':
                own.one_shot['top-1'] = table['one_shot']['compensated']['top1']
            own.costs |= {key: table['target'][key] for key in ('macs', 'params')}
            found['dense'].score['top-1'] = dense['top1']
            found['dense'].costs |= {key: dense[key] for key in ('macs', 'params')}


def _read_continued(plan: ClassifierPlan, row: Row, found: Mapping[str, Found]) -> None:
    """A training that no comparison reports, by its log; its costs are the dense network's."""
    if plan.checkpoint(row).is_file():
        top1 = last_value(plan.folder / row.name / 'train', 'accuracy/top1')
        found[row.name].score |= {} if top1 is None else {'top-1': top1}
        found[row.name].costs = found['dense'].costs


def _by_rank(plan: Plan, pattern: str) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((rank, table) for rank in RANKS for table in _tables(plan, pattern.format(rank)))


def _tables(plan: Plan, pattern: str) -> Iterable[dict[str, Any]]:
    for path in sorted(plan.folder.glob(pattern)):
        yield json.loads(path.read_text(encoding='utf-8'))


@dataclass(frozen=True)
class StudyFound:
    """The figures of a study over its seeds.

    Attributes:
        study: the study.
        seeds: the seeds.
        by_seed: for each seed the figures by row.
        epochs: epochs of each row's own training.
        size: ``HEIGHTxWIDTH`` in pixels at which costs are counted.
    """

    study: Study
    seeds: Sequence[int]
    by_seed: Mapping[int, Mapping[str, Found]]
    epochs: Mapping[str, int]
    size: str

    @classmethod
    def of(cls, plans: Sequence[Plan]) -> StudyFound:
        """The figures of one study's plans, one for each seed."""
        study, scale = plans[0].study, plans[0].scale
        epochs = {row.name: study.epochs(row, scale) for row in study.rows}
        by_seed = {plan.seed: found_in(plan) for plan in plans}
        return cls(study, [plan.seed for plan in plans], by_seed, epochs, plans[0].size)

    @property
    def metrics(self) -> list[str]:
        """The metrics that a row has."""
        return list(dict.fromkeys(m for rows in self.by_seed.values() for own in rows.values() for m in own.score))

    def values(self, row: str, metric: str, part: str = 'score') -> dict[int, float]:
        """A row's figures by seed, of seeds that have it."""
        each = {seed: getattr(rows[row], part).get(metric) for seed, rows in self.by_seed.items() if row in rows}
        return {seed: value for seed, value in each.items() if value is not None}

    def at_once(self, row: str, metric: str) -> dict[int, float]:
        """A row's figures before any training after pruning, by seed; the dense network has none, so its own."""
        return self.values(row, metric, 'score' if row == 'dense' else 'one_shot')

    def difference(self, row: str, other: str, metric: str, at_once: bool = False) -> dict[str, Any] | None:
        """The paired difference of two rows over the seeds that both have, with ``seeds``; None without any.

        Args:
            row, other: their names.
            metric: see ``Found.score``.
            at_once: before any training after pruning, instead of after it.
        """
        mine, theirs = (self.at_once(r, metric) if at_once else self.values(r, metric) for r in (row, other))
        seeds = [seed for seed in self.seeds if seed in mine and seed in theirs]
        if not seeds:
            return None
        step = 100 * AP_STEP if self.study.is_detector else 0
        return paired_difference([mine[s] for s in seeds], [theirs[s] for s in seeds], step) | {'seeds': seeds}


@dataclass(frozen=True)
class Variant:
    """A row with a seed: what a measure said before training, and what came of it.

    Attributes:
        study: name of its study.
        row: name of its row.
        before: the measure.
        after: share of the dense network's metric, after fine-tuning or at once, so that data sets are comparable.
    """

    study: str
    row: str
    before: float
    after: float


def variants(studies: Sequence[StudyFound], measure: str, metric: str, at_once: bool = False) -> list[Variant]:
    """All rows and seeds that have a measure before training and a metric after it.

    Args:
        studies: where to look.
        measure: one of ``MEASURES``, or ``AT_ONCE``, the share of the dense network's metric before training.
        metric: see ``Found.score``.
        at_once: the metric before training instead of after it.
    """
    found = []
    for study in studies:
        for rows in study.by_seed.values():
            dense = rows['dense'].score.get(metric)
            for name, own in rows.items():
                before = own.one_shot.get(metric) if measure == AT_ONCE else own.consistency.get(measure)
                came = own.one_shot if at_once else own.score
                if dense and before is not None and metric in came:
                    before = before / dense if measure == AT_ONCE else before
                    found.append(Variant(study.study.name, name, before, came[metric] / dense))
    return found


def rank_correlation(found: Sequence[Variant]) -> dict[str, Any]:
    """Spearman's rank correlation of a measure before training with the share of the dense metric after it.

    Returns:
        ``rho``, ``p`` and ``variants``, their number; ``rho`` is None below three variants and where all are equal.
    """
    sides = [[one.before for one in found], [one.after for one in found]]
    if len(found) < 3 or any(len(set(side)) == 1 for side in sides):  # equal values have no ranks
        return {'rho': None, 'p': None, 'variants': len(found)}
    result = spearmanr(*sides)
    return {'rho': float(result.statistic), 'p': float(result.pvalue), 'variants': len(found)}


def rows_in(study: Study) -> Sequence[Row]:
    """The rows of a study in the order of its table."""
    return sorted(study.rows, key=lambda row: (-row.share, row.rank, row.name != row.shape_of, row.name))
