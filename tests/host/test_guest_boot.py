"""The guest image boots, emulated: kernel, initrd, root and agent, down to the power switch.

The machine has neither vsock nor virtio-fs here (they need vhost and a daemon; the node tier has
them), so the agent comes as far as finding that out, says so, and powers off.
"""

from __future__ import annotations

import subprocess

from kangaroo.guest import manifest
from kangaroo.wire.agent_protocol import PORT_KEY, PROTOCOL_VERSION
from kangaroo_lab import artefacts
from kangaroo_lab.enclosure import enclosed

BOOT_TIMEOUT_S = 240


def boot(*parameters: str) -> str:
    """Boot until the machine ends by itself; what the console said."""
    image = artefacts.guest_image()
    command_line = " ".join(("console=ttyS0", "panic=-1", "quiet", *parameters))
    argv = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "512"]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-kernel", f"/image/{manifest.KERNEL}", "-initrd", f"/image/{manifest.INITRD}"]
    argv += [
        "-blockdev",
        f"driver=file,node-name=root,read-only=on,filename=/image/{manifest.ROOT}",
    ]
    argv += ["-device", "virtio-blk-pci,drive=root", "-serial", "stdio", "-append", command_line]
    process = subprocess.run(
        enclosed(artefacts.host_tools(), argv, read_only={image: "/image"}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=BOOT_TIMEOUT_S,
        check=False,
    )
    console = process.stdout.decode(errors="replace")
    assert process.returncode == 0, console
    return console


def test_image_is_what_its_manifest_says() -> None:
    assert manifest.verify(artefacts.guest_image()).protocol_version == PROTOCOL_VERSION


def test_guest_boots_says_what_it_lacks_and_powers_off() -> None:
    console = boot(f"{PORT_KEY}=1024")
    assert "kangaroo-agent: cannot serve" in console
    assert "no virtio-fs device offers the tag 'kangaroo'" in console
    assert "Kernel panic" not in console


def test_guest_that_cannot_start_ends_instead_of_hanging() -> None:
    # The kernel finds no init and panics; panic=-1 resets, and QEMU runs with -no-reboot.
    assert "Kernel panic" in boot("rdinit=/nowhere", f"{PORT_KEY}=1024")
