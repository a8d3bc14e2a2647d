"""The classifier: its forward pass, without padding where the family allows it, its folder, and scoring."""
