"""Studies of gradients: by path length, and of each block's influence."""
