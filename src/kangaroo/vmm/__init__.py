"""Virtual machines: a frozen specification, its QEMU command line, and the running machine.

Knows nothing of Kubernetes or containerd.
"""
