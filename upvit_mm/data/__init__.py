"""Data: the embedded digits as a classification set and COCO scenes, and checks of the data that a config names."""
