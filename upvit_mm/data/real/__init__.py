"""Real data sets, from what users download to what configs read: CIFAR-10, nuclei, BCCD, and any VOC folder."""
