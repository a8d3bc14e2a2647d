"""Workbooks → dialogues. Called by stages/ingest.py."""
