"""A confined child process that reads videos of unknown origin."""
