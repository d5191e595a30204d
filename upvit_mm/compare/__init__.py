"""Comparisons of networks: classifiers, detectors, tokens; their records, and one page of results."""
