"""Text → token ids, exactly as the original stack made them."""
