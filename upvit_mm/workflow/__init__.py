"""Whole jobs, from files to files, which the tools call."""
