"""Put this checkout's code and guest image on a node that runs, without a torn state between.

A sandbox may start at any moment: it finds the package and the guest image as they were or as they
are now, because both change by one rename.
"""

from __future__ import annotations

from pathlib import Path

from kangaroo_lab.node import Node

# On the node's disk, where a rename into place is possible.
_STAGE = "/opt/kangaroo/.stage"
_GUEST = "/var/lib/kangaroo/guest"
_TIMEOUT_S = 120

# cp replaces files that are in use by new ones instead of writing into them.
_TAKE_OVER = f"""
set -e
package=opt/kangaroo/lib/kangaroo
mv --exchange -T {_STAGE}/$package /$package
rm -r {_STAGE}/$package
cp -r --preserve=mode,timestamps --remove-destination {_STAGE}/. /
rm -r {_STAGE}
systemd-sysusers
systemd-tmpfiles --create kangaroo.conf
systemctl daemon-reload
systemctl restart kangaroo-csi
"""


def deploy_code(node: Node, tree: Path) -> None:
    """Replace the package, the entry scripts and the units by those in `tree`; restart the driver.

    A module that a running shim has yet to import is the new one.
    """
    tree.chmod(0o755)
    node.exec(["rm", "-rf", _STAGE])
    node.copy_to(tree, _STAGE)
    node.exec(["sh", "-c", _TAKE_OVER], timeout_s=_TIMEOUT_S)


def deploy_guest(node: Node, image: Path) -> None:
    """Make `image` the guest image of new sandboxes. A repeat copies nothing."""
    place = f"/var/lib/kangaroo/images/{image.name}"
    if node.exec(["test", "-e", f"{place}/manifest.json"], check=False).status != 0:
        node.exec(["rm", "-rf", f"{place}.new"])
        node.copy_to(image, f"{place}.new")
        node.exec(["mv", "-T", f"{place}.new", place])
    node.exec(["sh", "-c", f"ln -sfn {place} {_GUEST}.new && mv -T {_GUEST}.new {_GUEST}"])
