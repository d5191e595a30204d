"""Read any known checkpoint of the families safely; write ours with provenance."""

from upvit_mm.checkpoints.convert import convert_file
from upvit_mm.checkpoints.io import load_backbone, load_classifier, local_file, read_checkpoint, save_checkpoint
from upvit_mm.checkpoints.keys import LAYOUTS, check_state, detect_layout, from_ours, to_ours, to_ours_in_place
from upvit_mm.checkpoints.known_arch import check_arch_of, known_arch
from upvit_mm.checkpoints.whole import is_harmless, model_state
from upvit_mm.choices import WEIGHTS

__all__ = [
    'LAYOUTS',
    'WEIGHTS',
    'check_arch_of',
    'check_state',
    'convert_file',
    'detect_layout',
    'from_ours',
    'is_harmless',
    'known_arch',
    'load_backbone',
    'load_classifier',
    'local_file',
    'model_state',
    'read_checkpoint',
    'save_checkpoint',
    'to_ours',
    'to_ours_in_place',
]
