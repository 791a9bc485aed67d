"""Many plans from one file: worked off by processes of this machine or of a Ray cluster, kept as they come, written as one table."""
