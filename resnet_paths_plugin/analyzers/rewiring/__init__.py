"""Studies of rewired networks: lesions, reorderings, any schedules."""
