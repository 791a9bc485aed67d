"""Facts about accelerators, pods and models: one file each, every number with its source."""
