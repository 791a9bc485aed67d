"""What a step costs: pure functions of a workload, a chip, its links and a calibration."""
