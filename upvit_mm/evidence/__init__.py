"""The experiment of docs/evidence.md: what pruning keeps of detectors on real photographs, and what its rivals keep.

``studies.py`` says what is compared, ``steps.py`` which commands that takes, ``run.py`` runs them, ``results.py`` reads
what they wrote, ``report.py`` writes the tables.
"""
