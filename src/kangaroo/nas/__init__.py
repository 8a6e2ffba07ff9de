"""NAS volumes: what a pod asks for, what the mount table says, what the guest mounts. Pure."""
