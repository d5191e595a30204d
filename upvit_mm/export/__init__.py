"""ONNX files of backbones, backbones with their neck, and classifiers: one file for every image size."""

from upvit_mm.export.job import Exported, export, result_rows
from upvit_mm.export.onnx_file import OPSETS, open_session, run_session, write_onnx
from upvit_mm.export.parts import Part, load_part

__all__ = [
    'OPSETS',
    'Exported',
    'Part',
    'export',
    'load_part',
    'open_session',
    'result_rows',
    'run_session',
    'write_onnx',
]
