"""Models of libraries that the project was not made for, built from configurations with random weights."""
