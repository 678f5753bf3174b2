"""What a campaign found, as numbers, plots and a page."""
