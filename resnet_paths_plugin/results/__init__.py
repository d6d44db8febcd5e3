"""Results: what a dataset holds, where it comes from, its way to a file and back."""
