"""The classifier: its forward pass without padding, its folder, and scoring."""
