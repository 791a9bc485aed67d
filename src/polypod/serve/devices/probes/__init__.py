"""One file a vendor: how its tool is asked, and how its answers are read."""
