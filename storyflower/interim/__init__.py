"""Reads and writes the files between the stages, in data/interim/ and reports/."""
