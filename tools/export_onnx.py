"""Write the backbone, backbone and neck, or the whole classifier of a config as one ONNX file for every image size.

Parts: `backbone`, its maps (`stage1`... of a PVTv2, `block12`... of a DeiT); `neck`, an mmdet config's FPN or
SimpleFeaturePyramid on top (`p2`... by stride); `classifier`, the `logits` of an mmpretrain config, before softmax. The
input `image` is float32 NCHW, normalised as in training, (pixels - mean) / std; mean, std and channel order are in the
file's metadata. Batch, height and width are free. For whole detectors (boxes, NMS) use mmdeploy.

The file is compared with torch in onnxruntime at all sizes, and written only when it agrees within 1e-4.
"""

import argparse
import logging
from pathlib import Path

from rich.console import Console

from upvit_mm.arch.size import parse_size
from upvit_mm.arguments import OptionsAction
from upvit_mm.choices import EXPORTED
from upvit_mm.cli import one_line_errors, table_of


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the detector (mmdet) or classifier (mmpretrain)')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('--part', choices=EXPORTED, required=True, help='what to export')
    parser.add_argument('--out', type=Path, required=True, help='.onnx file to write')
    parser.add_argument(
        '--sizes',
        nargs='+',
        default=['224x224', '256x320', '333x500'],
        help='SIDE or HEIGHTxWIDTH in pixels to verify and time it at (default: 224x224 256x320 333x500)',
    )
    parser.add_argument('--opset', type=int, default=17, help='ONNX opset, 13 to 20 (default: %(default)s)')
    parser.add_argument(
        '--dense',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='the dense network, to compare speed and file size with; its file is not kept',
    )
    parser.add_argument('--repeats', type=int, default=7, help='timed runs at each size (default: %(default)s)')
    parser.add_argument('--threads', type=int, help="CPU threads of torch and onnxruntime (default: torch's setting)")
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, help='override settings of CONFIG')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # after parsing: they import torch and OpenMMLab, which takes seconds
    import torch

    from upvit_mm.export import export, load_part, result_rows

    logging.getLogger('upvit_mm').setLevel(logging.WARNING)  # the backbone's loader: the rest was dropped
    if args.threads:
        torch.set_num_threads(args.threads)
    sizes = [parse_size(text) for text in args.sizes]
    part = load_part(args.part, args.config, args.checkpoint, args.cfg_options)
    dense = load_part(args.part, *args.dense) if args.dense else None
    results = export(part, args.out, sizes, args.opset, args.repeats, dense)
    console = Console(soft_wrap=True)
    console.print(table_of(f'{args.part}, onnxruntime on the CPU', *result_rows(results)))
    console.print(f'{args.out}: {", ".join(part.outputs)}', highlight=False)


if __name__ == '__main__':
    with one_line_errors():
        main()
