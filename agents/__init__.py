"""The learning room: everything that needs torch or stable-baselines3 lives here and nowhere else."""
