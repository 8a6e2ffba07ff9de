#!/bin/sh
# Tells the machine which of these units run, and then that the node is up. What is known about those
# that do not is on the console.
for unit; do
    state=$(systemctl is-active "$unit")
    [ "$state" = active ] || systemctl status --no-pager --full --lines=30 "$unit" >/dev/console
    echo "$unit $state"
done >/dev/ttyS1
echo ready >/dev/ttyS1
