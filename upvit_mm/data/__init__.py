"""Data: the embedded digits as a classification set and COCO scenes, and checks of what a config points at."""
