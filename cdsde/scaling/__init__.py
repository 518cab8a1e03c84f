"""What programs cost: compiled ahead for TPUs that are not there, and timed where they run."""
