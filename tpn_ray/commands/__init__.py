"""What the commands train, tune and evaluate do, for Python as for jobs/."""
