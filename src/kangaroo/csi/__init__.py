"""The CSI driver: Identity, Controller and Node services of CSI 1.x, and registration with kubelet."""
