"""What is wrong with an installation or a config, found before hours of training: ``python -m upvit_mm.doctor``."""
