"""The compiled driver: C over arrays, the same record as `simulate.run` byte for byte."""
