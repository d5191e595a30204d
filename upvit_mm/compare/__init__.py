"""Networks beside one another: classifiers, detectors, tokens; their records, and one page of results."""
