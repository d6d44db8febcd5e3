"""Coalitions of blocks: the network with some of its branches as a game, its Shapley values and interactions."""
