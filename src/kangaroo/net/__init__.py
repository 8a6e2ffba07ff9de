"""The pod's network, moved into the guest: observe the namespace, plan, apply.

`plan` is pure; `observe` and `apply` are the thin netlink layers around it.
"""
