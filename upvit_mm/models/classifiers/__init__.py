"""Classifiers that learn from a teacher."""

from upvit_mm.models.classifiers.distill import DistillClassifier

__all__ = ['DistillClassifier']
