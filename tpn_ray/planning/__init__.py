"""Planning: from a short measurement on the user's data and cluster to the machines and flags of a run and a
campaign."""
