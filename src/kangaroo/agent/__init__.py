"""PID 1 of the guest: one epoll loop, the standard library and the wire codec, nothing else.

Emulated or small machines pay for every import, so what is not needed to start is imported where it
is used.
"""
