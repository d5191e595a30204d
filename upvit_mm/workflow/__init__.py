"""Whole jobs, from files to files: what the tools call."""
