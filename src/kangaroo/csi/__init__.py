"""The CSI driver: Identity, Controller and Node services of CSI 1.x; registration with kubelet."""
