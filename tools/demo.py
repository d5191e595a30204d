"""The main job on the embedded digits: classifier, pruning, distillation, two detectors on what is left, report."""

import argparse
import hashlib
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mmengine.config import Config
from pycocotools.coco import COCO
from rich.console import Console
from rich.progress import track

from upvit_mm.arch import ArchSpec
from upvit_mm.benchmark.pictures import ground_truth, read_predictions, save_sheet
from upvit_mm.cli import one_line_errors
from upvit_mm.data.digits import CLASSES
from upvit_mm.data.prepare import prepare_digits
from upvit_mm.files import sha256_of, write_text_atomically
from upvit_mm.openmmlab import SUPPORTED, installed_version

SCENES, SIZE, SEED = 800, 128, 0
PICTURES = 8
MIN_SCORE = 0.5
console = Console(stderr=True)


ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Step:
    """One training with its evaluation.

    Attributes:
        name: folder below the work dir.
        config: config file, relative to the repository.
        targets: what a whole run must reach, by metric.
        pruned_backbone: whether it starts from the pruned network.
    """

    name: str
    config: str
    targets: dict[str, float]
    pruned_backbone: bool = False


CLASSIFIER = Step('classifier', 'configs/demo/up-pvtv2-micro_digits.py', {'accuracy/top1': 85.0})
DETECTORS = (
    Step('retinanet', 'configs/demo/retinanet_up-pvtv2-micro_fpn_digits.py', {'coco/bbox_mAP': 0.26}, True),
    Step(
        'mask-rcnn',
        'configs/demo/mask-rcnn_up-pvtv2-micro_fpn_digits.py',
        {'coco/bbox_mAP': 0.30, 'coco/segm_mAP': 0.25},
        True,
    ),
)
BUDGET = f'macs@{SIZE}x{SIZE}'
FINETUNE = ['--budget', f'macs=50%@{SIZE}x{SIZE}', '--prune-options', 'non_uniform=True', 'per_class=40']
FINETUNE += ['--rows', 'vanilla', 'compensated-distilled', '--seeds', str(SEED), '--finetune-lr', '5e-4']
FINETUNE_EPOCHS = 5


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'))
    parser.add_argument('--quick', action='store_true', help='few epochs: shows that it runs, not that it learns')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    work_dir = (args.work_dir / 'quick' if args.quick else args.work_dir).absolute()
    os.chdir(ROOT)  # configs name the data relative to the repository
    console.rule('digits')
    data = Path(Config.fromfile(DETECTORS[0].config).data_root)
    prepare_digits(data, SCENES, SIZE, SEED, track)
    results: dict[str, dict] = {}
    console.rule(CLASSIFIER.name)
    results[CLASSIFIER.name] = run_step(CLASSIFIER, work_dir, data, results, args.quick)
    console.rule('pruning and distillation')
    results['pruned'] = run_finetuning(work_dir, data, results, args.quick)
    for step in DETECTORS:
        console.rule(step.name)
        results[step.name] = run_step(step, work_dir, data, results, args.quick)
    write_report(work_dir, data, results, args.quick)
    console.rule()
    console.print(f'report: {work_dir / "report.md"}')
    steps = () if args.quick else (CLASSIFIER, *DETECTORS)
    missed = {step.name: m for step in steps if (m := missed_targets(step, results[step.name]))}
    if missed:
        sys.exit(f'error: below target: {missed}')


def missed_targets(step: Step, result: dict) -> dict[str, str]:
    """Metrics below what the step must reach."""
    metrics = result['metrics']
    return {key: f'{metrics[key]} < {target}' for key, target in step.targets.items() if metrics[key] < target}


def run_step(step: Step, work_dir: Path, data: Path, results: dict, quick: bool) -> dict:
    """Train and evaluate, go on where a killed run stopped, or reuse a finished result of the same inputs."""
    folder = work_dir / step.name
    options = ['train_cfg.max_epochs=1'] if quick else []
    inputs = [Config.fromfile(step.config).pretty_text, sha256_of(data / 'dataset.json'), *code_identity()]
    if step.pruned_backbone:
        files = results['pruned']
        widths = str(list(ArchSpec.from_json(files['arch']).embed_dims)).replace(' ', '')
        options += [f'model.backbone.arch={files["arch"]}', f'model.neck.in_channels={widths}']
        options += [
            'model.backbone.init_cfg.type=Pretrained',
            f'model.backbone.init_cfg.checkpoint={files["checkpoint"]}',
        ]
        inputs += [sha256_of(files['arch']), sha256_of(files['checkpoint'])]
    result_file = claim_folder(folder, '\n'.join([*inputs, *options]))
    if result_file.is_file():
        console.print(f'{folder}: finished before with the same inputs')
        return json.loads(result_file.read_text())

    start = time.monotonic()
    train = ['tools/train.py', step.config, '--work-dir', str(folder), '--resume']
    train += ['--cfg-options', *options] if options else []
    run(train)
    checkpoint = folder / Path((folder / 'last_checkpoint').read_text().strip()).name
    test = ['tools/test.py', step.config, str(checkpoint), '--work-dir', str(folder / 'test')]
    test += ['--metrics', str(folder / 'metrics.json'), '--out', str(folder / 'predictions.pkl')]
    run([*test, '--cfg-options', *options] if step.pruned_backbone else test)
    metrics = json.loads((folder / 'metrics.json').read_text())['metrics']
    result = {'checkpoint': str(checkpoint), 'metrics': metrics, 'targets': step.targets}
    return finish(result_file, result, train, start)


def run_finetuning(work_dir: Path, data: Path, results: dict, quick: bool) -> dict:
    """Prune the classifier to half its multiply-accumulates and distil, beside the vanilla network of those widths."""
    folder, source = work_dir / 'pruned', results[CLASSIFIER.name]['checkpoint']
    epochs = 1 if quick else FINETUNE_EPOCHS
    inputs = [Config.fromfile(CLASSIFIER.config).pretty_text, sha256_of(data / 'dataset.json'), *code_identity()]
    result_file = claim_folder(folder, '\n'.join([*inputs, sha256_of(source), *FINETUNE, str(epochs)]))
    if result_file.is_file():
        console.print(f'{folder}: finished before with the same inputs')
        return json.loads(result_file.read_text())

    start = time.monotonic()
    command = ['tools/compare_classifiers.py', CLASSIFIER.config, source, '--work-dir', str(folder), *FINETUNE]
    command += ['--epochs', str(epochs)]
    run(command)
    compared = json.loads((folder / 'compare.json').read_text())
    rows = {row['key']: row['mean'] for row in compared['rows']}
    result = {
        'arch': str(folder / 'pruning' / 'arch.json'),
        'checkpoint': str(folder / 'compensated-distilled' / f'seed{SEED}' / f'epoch_{epochs}.pth'),
        'metrics': {'accuracy/top1': rows['compensated-distilled']},
        'vanilla': rows['vanilla'],
        'epochs': epochs,
        'one_shot': compared['one_shot'],
        'costs': json.loads((folder / 'pruning' / 'report.json').read_text())['costs'],
    }
    return finish(result_file, result, command, start)


def finish(result_file: Path, result: dict, command: list[str], start: float) -> dict:
    """Write a step's result with what made it."""
    result |= {
        'command': shlex.join(['python', *command]),
        'seed': SEED,
        'versions': {name: metadata.version(name) for name in ('torch', 'timm')}
        | {module: installed_version(module) for module in SUPPORTED},
        'seconds': round(time.monotonic() - start),  # of the last run, when an earlier one was stopped
    }
    write_text_atomically(result_file, json.dumps(result, indent=2) + '\n')
    return result


def code_identity() -> list[str]:
    """What else decides a result: the versions underneath and this package's code."""
    versions = [f'{module} {installed_version(module)}' for module in SUPPORTED] + [metadata.version('torch')]
    return versions + [sha256_of(path) for path in sorted((ROOT / 'upvit_mm').rglob('*.py'))]


def claim_folder(folder: Path, inputs: str) -> Path:
    """Make a step's folder, empty unless it belongs to the same inputs, and return where its result stands.

    Raises:
        ValueError: the folder holds something that is not the demo's.
    """
    fingerprint = hashlib.sha256(inputs.encode()).hexdigest()
    marker = folder / 'inputs.sha256'
    if folder.exists() and not marker.is_file():
        raise ValueError(f'{str(folder)!r} holds something else than a demo run; name another --work-dir.')
    if folder.exists() and marker.read_text() != fingerprint:
        shutil.rmtree(folder)
    write_text_atomically(marker, fingerprint)
    return folder / 'result.json'


def run(command: list[str]) -> None:
    """A tool in a process of its own, its output passed through."""
    console.print(f'$ python {shlex.join(command)}', soft_wrap=True)
    status = subprocess.run([sys.executable, *command]).returncode
    if status:
        sys.exit(f'error: {command[0]} ended with status {status}; its messages stand above. Run again to go on.')


def write_report(work_dir: Path, data: Path, results: dict, quick: bool) -> None:
    """``results.json`` with every figure, ``detections.png`` and ``report.md``."""
    text = json.dumps(results, indent=2) + '\n'
    write_text_atomically(work_dir / 'results.json', text)

    coco = COCO(data / 'annotations' / 'instances_val.json')
    image_ids = sorted(coco.imgs)[:PICTURES]
    rows = {'ground truth': ground_truth(coco, image_ids)}
    for name in (step.name for step in DETECTORS):
        dumped = pickle.loads((work_dir / name / 'predictions.pkl').read_bytes())  # written by our own test run
        rows[name] = read_predictions(dumped, CLASSES, MIN_SCORE)
    save_sheet(work_dir / 'detections.png', coco, data / 'val', image_ids, rows)

    lines = ['# UP-ViT demo on digits', '']
    if quick:
        lines += ['**QUICK run: few epochs, which show that everything runs, not that it learns.**', '']
    lines += [
        f'Data: {SCENES} training and {SCENES // 4} validation scenes of {SIZE} px composed from real digits '
        f'(MNIST-5k); seed {SEED}. Validation scenes hold digits that training never shows.',
        '',
        '| model | top-1 % | box AP | box AP50 | mask AP | mask AP50 | seconds |',
        '|---|---:|---:|---:|---:|---:|---:|',
    ]
    keys = ('accuracy/top1', 'coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/segm_mAP', 'coco/segm_mAP_50')
    for name, result in results.items():
        cells = [f'{result["metrics"][k]:.3f}' if k in result['metrics'] else '' for k in keys]
        lines.append(f'| {name} | {" | ".join(cells)} | {result["seconds"]} |')
    lines += [
        '',
        *pruning_lines(results['pruned']),
        f'![detections with score above {MIN_SCORE} on validation scenes](detections.png)',
        '',
    ]
    lines += ['How each was made (figures: `results.json`):', '', '```']
    lines += [result['command'] for result in results.values()]
    lines += ['```', '']
    write_text_atomically(work_dir / 'report.md', '\n'.join(lines))


def pruning_lines(pruned: dict) -> list[str]:
    """What pruning took away, what it cost, and what fine-tuning brought back."""
    one_shot, dense, left = pruned['one_shot'], pruned['costs']['dense'][BUDGET], pruned['costs']['pruned'][BUDGET]
    return [
        f'The detectors stand on the pruned backbone: {left / 1e6:.1f} M multiply-accumulates at {SIZE} px, dense '
        f'{dense / 1e6:.1f} M ([widths, scores, costs](pruned/pruning/report.md)).',
        '',
        '| classifier | top-1 % |',
        '|---|---:|',
        f'| dense | {one_shot["dense"]["top1"]:.1f} |',
        f'| vanilla of the pruned widths, from scratch, {pruned["epochs"]} epochs | {pruned["vanilla"]:.1f} |',
        f'| UP, sliced | {one_shot["sliced"]["top1"]:.1f} |',
        f'| UP, compensated | {one_shot["compensated"]["top1"]:.1f} |',
        f'| UP, compensated, distilled, {pruned["epochs"]} epochs | {pruned["metrics"]["accuracy/top1"]:.1f} |',
        '',
    ]


if __name__ == '__main__':
    with one_line_errors():
        main()
