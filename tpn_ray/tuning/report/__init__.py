"""A campaign's results as numbers, plots, and a page."""
