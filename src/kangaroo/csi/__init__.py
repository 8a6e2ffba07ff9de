"""The CSI driver: Identity and Node services of CSI 1.x, and registration with kubelet."""
