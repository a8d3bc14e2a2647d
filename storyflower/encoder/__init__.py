"""A card → a verified encoder folder. Called by stages/encoder.py."""
