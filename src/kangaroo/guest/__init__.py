"""The guest image: kernel, initrd and read-only root, built from Debian packages."""
