"""The `kangaroo` command."""
