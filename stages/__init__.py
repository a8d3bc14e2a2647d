"""The six stages of dvc.yaml: each reads the params, makes one library call, prints a line."""
