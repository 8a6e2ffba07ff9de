"""The lab: a real node in a VM, a NAS and a real Kubernetes on a machine that has none."""
