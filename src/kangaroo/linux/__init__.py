"""Thin wrappers of Linux interfaces. Standard library only."""
