"""Classifier + Validation → reports. Called by stages/evaluate.py."""
