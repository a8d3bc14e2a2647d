"""The files between the stages, in data/interim/ and reports/: written and read here."""
