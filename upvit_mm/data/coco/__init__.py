"""COCO annotation files: their content, and faults that would cause errors later without a message."""

from upvit_mm.data.coco.fault import USES, Fault
from upvit_mm.data.coco.file import WAY_OUT, CocoFile, examine
from upvit_mm.data.coco.pictures import check_names, check_sizes, turns_pictures

__all__ = ['USES', 'WAY_OUT', 'CocoFile', 'Fault', 'check_names', 'check_sizes', 'examine', 'turns_pictures']
