"""What Kangaroo costs: sandbox start, memory, the comparison of mounts, and imports."""
