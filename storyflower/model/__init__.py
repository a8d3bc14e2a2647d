"""The classifier: its forward pass (without padding where it can), its folder, and scoring."""
