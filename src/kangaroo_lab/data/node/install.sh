#!/bin/sh
# Makes a node out of the stock root: run at every boot by systemd, from the payload disk.
set -eu
payload=/run/payload
# shellcheck source=/dev/null
. "$payload/node.env"

hostname "$NODE_NAME"
ip address add "$NODE_ADDRESS/$NODE_PREFIX" dev eth0
ip link set lo up
ip link set eth0 up
ip route add default via "$GATEWAY"

# The disk outlives a boot, and what was deployed to it since.
installed=/var/lib/kangaroo/.installed
if [ ! -e "$installed" ]; then
    cp -a "$payload/files/." /
    mkdir -p /usr/local/bin /var/lib/kangaroo /opt/kangaroo
    for program in "$payload"/bin/*; do
        ln -sf "$program" "/usr/local/bin/${program##*/}"
    done
    ln -sfn "$payload/guest" /var/lib/kangaroo/guest
    systemd-sysusers
    systemd-tmpfiles --create kangaroo.conf
    touch "$installed"
fi
mount --make-rshared /
systemctl daemon-reload
# shellcheck disable=SC2086  # a list of units
systemctl start --no-block $UNITS
