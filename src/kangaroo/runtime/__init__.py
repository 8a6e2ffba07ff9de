"""The containerd shim: a pod's sandbox, its containers, and NAS passthrough into the guest."""
