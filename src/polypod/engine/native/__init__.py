"""The compiled core: one engine, and the simulator's whole driver, in C over arrays, figure for figure what Python computes."""
