"""Reading any known checkpoint of the two families, safely; writing ours, with provenance."""

from upvit_mm.checkpoints.convert import convert_file
from upvit_mm.checkpoints.io import load_backbone, load_classifier, local_file, read_checkpoint, save_checkpoint
from upvit_mm.checkpoints.keys import LAYOUTS, check_state, detect_layout, from_ours, to_ours, to_ours_in_place

__all__ = [
    'LAYOUTS',
    'check_state',
    'convert_file',
    'detect_layout',
    'from_ours',
    'load_backbone',
    'load_classifier',
    'local_file',
    'read_checkpoint',
    'save_checkpoint',
    'to_ours',
    'to_ours_in_place',
]
