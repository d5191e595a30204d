from upvit_mm.models.classifiers.distill import DistillClassifier

__all__ = ['DistillClassifier']
