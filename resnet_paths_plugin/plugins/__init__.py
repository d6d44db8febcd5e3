"""Plugins: what is asked of them, who is asked, and what they say of models."""
