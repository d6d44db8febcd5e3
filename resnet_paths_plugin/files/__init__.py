"""Files: roles, locks, seals, limits, and how they are read and written, whole or not at all."""
