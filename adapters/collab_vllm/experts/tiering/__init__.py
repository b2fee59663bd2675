"""Experts in two memories: some on the device, all of them in host memory, moving as the traffic moves."""
