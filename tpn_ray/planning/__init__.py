"""Planning: from a short measurement on the user's data and cluster to machines and flags for a run and a campaign."""
