"""Find problems of an installation or a config before hours of training: ``python -m upvit_mm.doctor``."""
