"""Structurally pruned vision transformers (UP-ViTs, arXiv 2111.15127) for OpenMMLab."""

from upvit_mm.installed import config_path
from upvit_mm.version import __version__

__all__ = ['__version__', 'config_path']
