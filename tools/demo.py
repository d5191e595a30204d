"""The main job on the embedded digits: train, prune and distil a classifier, compare tokens, train detectors, and prune
one of them in place."""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.progress import track

import upvit_mm
from upvit_mm.cli import one_line_errors
from upvit_mm.files import empty_folder, sha256_of, write_text_atomically
from upvit_mm.openmmlab import SUPPORTED, installed_version

ROOT = Path(os.path.relpath(Path(__file__).parents[1]))  # short in the commands that are shown
SCENES, QUICK_SCENES, SIZE, SEED = 800, 80, 128, 0
DATA = Path('data/digits')  # the folder in the configs
EPOCHS = {'dense': 10, 'finetuned': 5, 'retinanet': 6, 'mask-rcnn': 6}
PARTS = ('train', 'val', 'test')
CLASSIFIER = str(ROOT / 'configs/demo/up-pvtv2-micro_digits.py')
ARCH = ROOT / 'configs/_base_/archs/pvtv2-micro.json'  # its backbone
DETECTORS = {  # name -> config, and its backbones
    'retinanet': (str(ROOT / 'configs/demo/retinanet_up-pvtv2-micro_fpn_digits.py'), ('vanilla', 'dense', 'up')),
    'mask-rcnn': (str(ROOT / 'configs/demo/mask-rcnn_up-pvtv2-micro_fpn_digits.py'), ('up',)),
}
CUT = ('retinanet', 'dense')  # the detector and the backbone that are pruned in place
TARGETS = {  # lowest results of a whole run, with a margin for the rounding of other machines
    'top-1 % of UP': 88.0,
    'top-1 % of UP over vanilla': 3.0,
    'retinanet: box AP of UP': 0.15,
    'retinanet: box AP of UP over vanilla': 0.02,
    'retinanet pruned in place: share of dense box AP': 0.94,
    'mask-rcnn: box AP of UP': 0.25,
    'mask-rcnn: mask AP of UP': 0.15,
}
console = Console(stderr=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'))
    parser.add_argument('--quick', action='store_true', help='one epoch each, few scenes: only shows that it runs')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # after parsing: they import torch and OpenMMLab, which takes seconds
    from upvit_mm.compare.page import write_page
    from upvit_mm.data.prepare import prepare_digits

    folder = (args.work_dir / 'quick' if args.quick else args.work_dir).absolute()
    scenes, data, epochs = SCENES, DATA, EPOCHS
    if args.quick:
        scenes, data, epochs = QUICK_SCENES, DATA.with_name(f'{DATA.name}-quick'), dict.fromkeys(EPOCHS, 1)
    console.rule('digits')
    prepare_digits(data, scenes, SIZE, SEED, track)
    claim_folder(folder, [sha256_of(data / 'dataset.json'), str(epochs), *code_identity()])

    classifiers, consistency = folder / 'classifiers', folder / 'consistency'
    run('classifiers: dense; pruned to half, vanilla of those widths', classify(classifiers, epochs, data))
    backbones = backbones_of(classifiers, epochs)
    if not (consistency / 'contrast.json').is_file():
        run('token consistency', compare_tokens(consistency, classifiers, backbones, data))
    for name, (config, wanted) in DETECTORS.items():
        command = [tool('compare_detectors'), config, '--work-dir', str(folder / name), '--seeds', str(SEED)]
        command += ['--epochs', str(epochs[name]), '--cfg-options', 'train_cfg.val_interval=3']
        command += elsewhere(data, judged=PARTS[1:])
        command += [*side_by_side(len(wanted)), '--backbones', *(f'{b}={backbones[b]}' for b in wanted)]
        if args.quick:  # times of networks that detect nothing would mean nothing
            command += ['--repeats', '0']
        run(f'{name} on {", ".join(wanted)}', command)
    in_place = folder / 'in-place'
    run(f'{" on ".join(CUT)}: pruned in place to half', cut_in_place(in_place, folder / '/'.join(CUT), epochs[CUT[0]]))

    notes = ['QUICK run: one epoch each, which shows that everything runs, not that it learns.'] if args.quick else []
    notes.append(
        f'{scenes} training and {scenes // 4} validation scenes of {SIZE} px composed from real handwritten digits '
        f'(MNIST), seed {SEED}. Validation scenes hold digits that training never shows.'
    )
    detectors = [folder / name for name in DETECTORS]
    pruning = classifiers / 'pruning'
    page = write_page(
        folder / 'report.html', 'UP-ViT on digits', detectors, classifiers, consistency, pruning, in_place, notes
    )
    console.rule()
    console.print(f'report: {page}', soft_wrap=True)
    console.print('on real photographs: python tools/evidence.py --data bccd (docs/evidence.md)', soft_wrap=True)
    if not args.quick and (missed := missed_targets(folder)):
        sys.exit(f'error: below target: {", ".join(missed)}')


def classify(folder: Path, epochs: dict[str, int], data: Path) -> list[str]:
    """Train the dense classifier, prune it to half its multiply-accumulates, and train pruned and vanilla networks."""
    command = [tool('compare_classifiers'), CLASSIFIER, '--work-dir', str(folder), '--seeds', str(SEED)]
    command += ['--budget', f'macs=50%@{SIZE}x{SIZE}', '--prune-options', 'per_class=40']
    command += ['--rows', 'vanilla', 'compensated-distilled', '--finetune-lr', '5e-4', *side_by_side(2)]
    if options := elsewhere(data / 'classification'):
        command += ['--cfg-options', *options]
    return [*command, '--dense-epochs', str(epochs['dense']), '--epochs', str(epochs['finetuned'])]


def tool(name: str) -> str:
    return str(ROOT / 'tools' / f'{name}.py')


def elsewhere(data: Path, judged: tuple[str, ...] = ()) -> list[str]:
    """Config options for data in another folder than the configs'; ``judged`` parts read COCO annotations."""
    if DATA in (data, data.parent):
        return []
    options = [f'{part}_dataloader.dataset.data_root={data}' for part in PARTS]
    return options + [f'{part}_evaluator.ann_file={data}/annotations/instances_val.json' for part in judged]


def side_by_side(trainings: int) -> list[str]:
    """Small networks train faster in parallel on one thread each than one after another on all threads.

    Three share two threads: a last one by itself would leave a thread idle.
    """
    import torch

    threads = torch.get_num_threads()
    return ['--jobs', str(trainings if trainings <= 1.5 * threads else threads)]


def backbones_of(classifiers: Path, epochs: dict[str, int]) -> dict[str, str]:
    """``ARCH,CHECKPOINT`` of the networks from the comparison of classifiers."""
    arch, trained = classifiers / 'pruning/arch.json', f'seed{SEED}/epoch_{epochs["finetuned"]}.pth'
    vanilla = classifiers / 'vanilla'  # the same widths, but its own logit scales
    return {
        'vanilla': f'{vanilla / "arch.json"},{vanilla / trained}',
        'dense': f'{ARCH},{classifiers}/dense/epoch_{epochs["dense"]}.pth',
        'sliced': f'{arch},{classifiers / "pruning/sliced.pth"}',
        'compensated': f'{arch},{classifiers / "pruning/pruned.pth"}',
        'up': f'{arch},{classifiers / "compensated-distilled" / trained}',
    }


def compare_tokens(folder: Path, classifiers: Path, backbones: dict[str, str], data: Path) -> list[str]:
    """Compare tokens with those of the dense network, on the scenes of the detectors."""
    command = [tool('compare_consistency'), CLASSIFIER, backbones['dense'].partition(',')[2], '--networks']
    command += [f'{name}={backbones[name]}' for name in ('sliced', 'compensated', 'up', 'vanilla')]
    command += ['--drop-tokens', 'zeros', 'nearest', 'last', '--sizes', f'{SIZE}x{SIZE}', '--work-dir', str(folder)]
    return [*command, '--images', str(data / 'annotations/instances_val.json')]


def cut_in_place(folder: Path, trained: Path, epochs: int) -> list[str]:
    """Prune a trained detector to half the multiply-accumulates of its backbone; nothing is trained."""
    run = trained / f'seed{SEED}'
    command = [tool('prune'), str(run / 'config.py'), str(run / f'epoch_{epochs}.pth')]
    return [*command, '--budget', f'macs=50%@{SIZE}x{SIZE}', '--work-dir', str(folder)]


def missed_targets(folder: Path) -> list[str]:
    """The ``TARGETS`` that a finished run does not reach."""
    rows = {row['key']: row['mean'] for row in read(folder / 'classifiers/compare.json')['rows']}
    found = {'top-1 % of UP': rows['compensated-distilled']}
    found['top-1 % of UP over vanilla'] = rows['compensated-distilled'] - rows['vanilla']
    for name in DETECTORS:
        aps = {row['name']: row['mean'] for row in read(folder / name / 'detectors.json')['rows']}
        found[f'{name}: box AP of UP'] = aps['up']['bbox_mAP']
        if 'vanilla' in aps:
            found[f'{name}: box AP of UP over vanilla'] = aps['up']['bbox_mAP'] - aps['vanilla']['bbox_mAP']
        if 'segm_mAP' in aps['up']:
            found[f'{name}: mask AP of UP'] = aps['up']['segm_mAP']
    one_shot = read(folder / 'in-place/report.json')['held_out']
    before, after = (one_shot[name].get('coco/bbox_mAP', 0) for name in ('dense', 'compensated'))  # it may find nothing
    found[f'{CUT[0]} pruned in place: share of dense box AP'] = after / before if before else 0.0
    return [f'{what} {found[what]:.3f} < {least}' for what, least in TARGETS.items() if found[what] < least]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding='utf-8'))


def code_identity() -> list[str]:
    """Other things that decide a result: versions of libraries and this package's code."""
    versions = [f'{module} {installed_version(module)}' for module in SUPPORTED] + [metadata.version('torch')]
    return versions + [sha256_of(path) for path in sorted(Path(upvit_mm.__file__).parent.rglob('*.py'))]


def claim_folder(folder: Path, inputs: list[str]) -> None:
    """Make the demo's folder. Results of the same data and code in it are reused; otherwise it is emptied.

    Raises:
        ValueError: the folder has content that is not the demo's.
    """
    fingerprint = hashlib.sha256('\n'.join(inputs).encode()).hexdigest()
    marker = folder / 'inputs.sha256'
    others = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if others and not marker.is_file() and others != ['quick']:
        raise ValueError(
            f'{str(folder)!r} holds something other than a demo run; remove it or name another --work-dir.'
        )
    if marker.is_file() and marker.read_text() != fingerprint:
        console.print(f'{folder}: made by other code or from other data; starting again')
        empty_folder(folder, last=marker)
    write_text_atomically(marker, fingerprint)


def run(title: str, command: list[str]) -> None:
    """Run a tool in a separate process and show its output."""
    console.rule(title)
    console.print(f'$ python {shlex.join(command)}', soft_wrap=True, highlight=False)
    status = subprocess.run([sys.executable, *command]).returncode
    if status:
        sys.exit(f'error: {command[0]} ended with status {status}; see its messages above. Run again to continue.')


if __name__ == '__main__':
    with one_line_errors():
        main()
