"""The six stages of dvc.yaml: each reads the params, makes one library call, prints a line."""

import gc
import sys

from storyflower.common import errors

# If the environment is not active, `.venv/bin/dvc repro` runs another `python`, which lacks the
# packages. The hook then prints one line instead of a traceback.
sys.excepthook = errors.excepthook

# Importing torch and transformers creates about 600,000 objects, which all stay alive. Scanning
# them for garbage again and again took a fifth of a stage's start.
gc.set_threshold(1_000_000)
