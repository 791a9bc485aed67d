"""The live policy and real engine emulations under every fault that a seed can think of."""
