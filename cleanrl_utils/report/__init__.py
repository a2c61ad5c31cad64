"""Many runs, compared with each other."""
