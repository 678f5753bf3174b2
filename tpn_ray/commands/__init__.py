"""The train, tune, and evaluate commands, as Python functions that jobs/ also calls."""
