"""Captum-style analyzers: the constructor takes the model, `attribute` returns a labelled Dataset."""
