"""One file an interface: how a vendor's library is asked through ctypes. They run in a child process only (`devices.library`)."""
