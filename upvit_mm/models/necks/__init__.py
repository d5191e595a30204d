"""From one map to a pyramid."""

from upvit_mm.models.necks.simple_feature_pyramid import SimpleFeaturePyramid

__all__ = ['SimpleFeaturePyramid']
