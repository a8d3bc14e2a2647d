"""Dialogues → token arrays. Called by stages/tokenize.py."""
