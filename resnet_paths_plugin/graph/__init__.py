"""A model becomes a functional data-flow graph with residual blocks."""
