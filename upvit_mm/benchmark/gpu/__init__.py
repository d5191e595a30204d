"""The report of ``tools/gpu_report.py``: what runs on a GPU, how fast, and which goals are met."""
