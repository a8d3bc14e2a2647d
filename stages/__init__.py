"""The six stages of dvc.yaml: each reads the params, makes one library call, prints a line."""

import gc
import sys

from storyflower.common import errors

# `.venv/bin/dvc repro` where the environment is not active: `python` is another, without packages.
sys.excepthook = errors.excepthook

# What torch and transformers make when imported stays, some 600,000 objects. Looking through them
# for garbage again and again was a fifth of a stage's start.
gc.set_threshold(1_000_000)
