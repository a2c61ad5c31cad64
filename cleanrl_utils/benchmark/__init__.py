"""Many runs, started on this machine or by Slurm."""
