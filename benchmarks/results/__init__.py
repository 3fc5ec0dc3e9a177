"""What docs/results.md shows: measured step by step (steps), written as a page (page, words) with plots (plots)."""
