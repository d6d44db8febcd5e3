"""Running a graph with residual blocks: many schedules forward, banks of path gradients backward."""
