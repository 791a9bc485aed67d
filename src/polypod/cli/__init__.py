"""The command line: one file per verb, and only the verb that is asked for is imported."""
