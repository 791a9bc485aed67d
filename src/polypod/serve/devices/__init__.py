"""What this machine computes with: found in the kernel's files, and measured."""

from polypod.serve.devices.cpu import CpuGroup, HostCpu, find_cpu

__all__ = ["CpuGroup", "HostCpu", "find_cpu"]
