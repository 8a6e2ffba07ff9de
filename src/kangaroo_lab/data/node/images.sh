#!/bin/sh
# Gives containerd the images that no registry serves.
set -eu
for image in /run/payload/images/*.tar; do
    [ -e "$image" ] || continue
    ctr --namespace k8s.io images import --local "$image"
done
