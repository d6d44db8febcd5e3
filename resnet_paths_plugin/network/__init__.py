"""A captured network: views, sampling, its check against the model, families of schedules."""
