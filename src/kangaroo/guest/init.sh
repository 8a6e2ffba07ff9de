#!/busybox sh
# /init of the initrd: bring up the disk, mount the root read-only, hand over to the agent.
# Kept short: every program that is started costs a slow machine tens of milliseconds. `insmod` without
# a path is the shell's own.
set -eu

fail() {
    echo "kangaroo initrd: $*" >/dev/kmsg
    # With panic=-1 the kernel resets at once, and QEMU, run with -no-reboot, ends.
    exit 1
}

/busybox mount -t devtmpfs dev /dev || fail "cannot mount /dev"
while read -r module; do
    insmod "/modules/$module" || fail "cannot load $module"
done </modules/order

# virtio_blk probes as it is loaded: the disk is there, or is not coming.
/busybox mount -t erofs -o ro /dev/vda /root || fail "cannot mount /dev/vda"
/busybox mount --move /dev /root/dev || fail "cannot move /dev to the root"

exec /busybox switch_root -c /dev/console /root /usr/bin/python3 -I -S -B \
    /usr/lib/python3.13/kangaroo/agent/__pycache__/start.cpython-313.pyc
