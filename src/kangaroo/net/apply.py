"""Carry a plan out inside a pod's network namespace."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from kangaroo.errors import Unsupported
from kangaroo.linux import netns, tap
from kangaroo.net.model import NamespaceState
from kangaroo.net.observe import observe
from kangaroo.net.plan import NetworkPlan, Operation, RedirectIngress, SetMtu, plan
from kangaroo.net.rtnetlink import IPRoute

_LOG = logging.getLogger(__name__)
# At debug level pyroute2 prints every message it parses, some kilobytes for each interface.
logging.getLogger("pyroute2").setLevel(logging.INFO)

_ETH_P_ALL = 0x0003
_INGRESS = 0xFFFF0000


@dataclass
class PodNetwork:
    """A tap joined to the pod's interface. Closing it removes the tap and with it every redirection
    to it.
    """

    plan: NetworkPlan
    tap_fd: int

    def close(self) -> None:
        """Close the tap; a second call does nothing. The device lives on in QEMU."""
        if self.tap_fd >= 0:
            os.close(self.tap_fd)
            self.tap_fd = -1


def inspect(netns_path: str) -> NamespaceState:
    """The state of the namespace at `netns_path`. Blocking. Raises OSError."""

    def body() -> NamespaceState:
        with IPRoute() as ipr:
            return observe(ipr)

    return netns.run_in(netns_path, body)


def connect(netns_path: str) -> PodNetwork | None:
    """Observe the namespace, plan, make the tap and join it; None when there is only loopback.
    Blocking.

    A repeat after a failure starts afresh: a tap that nobody holds is gone, and filters are
    replaced. Raises OSError, and what `plan` raises; no tap is left then.
    """
    return netns.run_in(netns_path, _connect_here)


def _connect_here() -> PodNetwork | None:
    with IPRoute() as ipr:
        network_plan = plan(observe(ipr))
        if network_plan is None:
            return None
        network = PodNetwork(network_plan, tap.create(network_plan.tap))
        try:
            for operation in network_plan.operations:
                _perform(ipr, operation)
        except BaseException:
            network.close()
            raise
        return network


def _perform(ipr: IPRoute, operation: Operation) -> None:
    _LOG.debug("network operation=%s", operation)
    match operation:
        case SetMtu(interface, mtu):
            ipr.link("set", index=_index(ipr, interface), mtu=mtu, state="up")
        case RedirectIngress(source, target):
            _redirect(ipr, _index(ipr, source), _index(ipr, target))


def _redirect(ipr: IPRoute, source: int, target: int) -> None:
    # Dropping the old ingress qdisc drops its filters: a half-made pair of an earlier try does not
    # linger.
    for qdisc in ipr.get_qdiscs(index=source):
        if qdisc["parent"] == _INGRESS + 0xFFF1:
            if (kind := qdisc.get_attr("TCA_KIND")) != "ingress":
                raise Unsupported(
                    f"the pod's interface has a qdisc {kind} on the node, of another program's",
                    hint="a sandbox takes each frame of the interface itself",
                )
            ipr.tc("del", "ingress", source, 0xFFFF0000)
    ipr.tc("add", "ingress", source, 0xFFFF0000)
    ipr.tc(
        "add-filter",
        "u32",
        source,
        parent=_INGRESS,
        protocol=_ETH_P_ALL,
        prio=1,
        target=0x10000,
        keys=["0x0/0x0+0"],
        action=[{"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": target}],
    )


def _index(ipr: IPRoute, name: str) -> int:
    found = ipr.link_lookup(ifname=name)
    if not found:
        raise OSError(f"no interface {name} in the pod's network namespace")
    return int(found[0])
