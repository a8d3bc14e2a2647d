"""Corpus files → one table of dialogues. Called by stages/ingest.py."""
