"""The six stages of dvc.yaml: each reads the params, makes one library call, prints a line."""

import gc

# What torch and transformers make when imported stays, some 600,000 objects. Looking through them
# for garbage again and again was a fifth of a stage's start.
gc.set_threshold(1_000_000)
