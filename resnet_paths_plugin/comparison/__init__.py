"""Models side by side, from their results alone: blocks on a common axis, curves by size, one table. Runs no model."""
