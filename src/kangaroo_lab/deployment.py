"""Put this checkout's code, configuration and guest image on a node that runs, without a torn state
between.

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

# cp replaces files that are in use by new ones instead of writing into them. Of configuration only
# what differs is replaced: containerd looks at its networks whenever a file of theirs is.
_TAKE_OVER = f"""
set -e
cd {_STAGE}
changed=
for file in $(find etc -type f); do
    if cmp --silent $file /$file; then rm $file; else changed="$changed $file"; fi
done
package=opt/kangaroo/lib/kangaroo
mv --exchange -T $package /$package
rm -r $package
cp -r --preserve=mode,timestamps --remove-destination . /
cd /
rm -r {_STAGE}
systemd-sysusers
systemd-tmpfiles --create kangaroo.conf
systemctl daemon-reload
case $changed in *containerd*) systemctl restart containerd ;; esac
case $changed in *kubelet*) systemctl restart kubelet ;; esac
systemctl restart kangaroo-csi
"""


def deploy_tree(node: Node, tree: Path) -> None:
    """Put the files in `tree` in place of the node's: the package, entry scripts, units and
    configuration. Restarts the driver, and containerd and kubelet where theirs is another.

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
