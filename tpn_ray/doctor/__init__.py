"""Checks whether a cluster, its storage, and its tracking server can do what the jobs need."""
