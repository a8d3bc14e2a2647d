"""Token arrays → a trained classifier and its history. Called by stages/train.py."""
