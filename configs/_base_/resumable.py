"""A training that is cut off and goes on with `--resume` ends as one undisturbed; a loss that is not finite stops it.

The training's workers start anew in every epoch then (`persistent_workers=False`).
"""

custom_hooks = [dict(type='upvit_mm.StopOnNonFiniteLoss'), dict(type='upvit_mm.SeedEveryEpoch')]
