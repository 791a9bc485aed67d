"""The compiled driver's arrays: the core's structs as numpy sees them, and its log as lines of a record."""
