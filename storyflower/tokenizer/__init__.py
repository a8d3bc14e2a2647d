"""Text → token ids, exactly as in the original notebook's libraries."""
