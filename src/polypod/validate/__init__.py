"""Predictions set beside measurements: rows read, conditions recovered, errors scored."""
