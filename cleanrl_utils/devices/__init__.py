"""Where a run computes: the devices of each framework."""
