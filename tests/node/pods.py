"""Manifests of the node tests, and the namespace that they are applied to.

Builders return plain dictionaries: Kubernetes takes JSON, so no template language stands between a
test and what it asks for. `Space` is one namespace with the few verbs that tests need.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.node import child, probe

from kangaroo.linux import mountinfo
from kangaroo.linux.netns import run_in

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab
    from kangaroo_lab.node import Completed, Node

Document = dict[str, Any]

BUSYBOX = "registry.cn-hangzhou.aliyuncs.com/acs/busybox:v1.29.2"
ENABLE = "storage.alibabacloud.com/enable_nas_passthrough"
FALLBACK = "kangaroo.io/nas-passthrough-fallback"
PASSTHROUGH: Mapping[str, str] = {ENABLE: "true"}
NFS = ("nfs", "nfs4")
# The lab's NAS serves this directory to nodes only, not to pods.
NODE_ONLY = "/nodeonly"
# Deadlines; see `waiting` for whom they are.
_SOON_S = 180
_KUBECTL_S = 300
_GONE_S = 600
_VOLUME_KINDS = ("PersistentVolume", "PersistentVolumeClaim")
DRIVER = "nasplugin.csi.alibabacloud.com"

# A shell that ends at once on SIGTERM: PID 1 of a container ignores a signal that it has no
# handler for.
IDLE = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"


def container(
    name: str,
    script: str = IDLE,
    *,
    mounts: Mapping[str, str] | Sequence[Document] = (),
    limits: Mapping[str, str] | None = None,
    **rest: Any,
) -> Document:
    """A busybox container that runs `script`; `mounts` is {path: volume name} or whole
    volumeMounts."""
    if isinstance(mounts, Mapping):
        mounts = [{"name": volume, "mountPath": path} for path, volume in mounts.items()]
    document: Document = {
        "name": name,
        "image": BUSYBOX,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
        "volumeMounts": list(mounts),
    }
    if limits:
        # Requests of nothing: the node has one CPU, and these pods are many.
        document["resources"] = {"limits": dict(limits), "requests": dict.fromkeys(limits, "0")}
    return document | rest


def pod(
    name: str,
    *containers: Document,
    runtime: str | None = "runv",
    annotations: Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    volumes: Sequence[Document] = (),
    **spec: Any,
) -> Document:
    """A pod; `runtime` None is the node's default, runc."""
    whole: Document = {
        "terminationGracePeriodSeconds": 5,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "containers": list(containers),
        "volumes": list(volumes),
    }
    if runtime is not None:
        whole["runtimeClassName"] = runtime
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": dict(annotations or {}), **(metadata or {})},
        "spec": whole | spec,
    }


def claim(name: str) -> Document:
    """The volume of a pod that stands for the claim `name`, under the same name."""
    return {"name": name, "persistentVolumeClaim": {"claimName": name}}


@dataclass(frozen=True)
class Event:
    """One Kubernetes event, as `kubectl describe` would show it."""

    reason: str
    message: str


@dataclass(frozen=True)
class Space:
    """One namespace of the lab's cluster."""

    lab: Lab
    name: str

    @property
    def node(self) -> Node:
        return self.lab.nodes["node1"]

    def kubectl(
        self,
        *args: str,
        stdin: str | None = None,
        timeout_s: float = _KUBECTL_S,
        check: bool = True,
    ) -> Completed:
        return self.lab.kubectl(
            "--namespace", self.name, *args, input=stdin, timeout_s=timeout_s, check=check
        )

    def argv(self, *args: str) -> list[str]:
        """kubectl's argv, for a test that runs it itself."""
        return self.lab.control_plane.kubectl("--namespace", self.name, *args)

    def apply(self, *documents: Document) -> None:
        """Apply all at once, volumes before what may use them. A second time is an update."""
        volumes = [each for each in documents if each["kind"] in _VOLUME_KINDS]
        if volumes:
            self._apply(volumes)
            # A pod that meets an unbound claim waits for the scheduler's back-off.
            bound = ["wait", "--for=jsonpath={.status.phase}=Bound", f"--timeout={_SOON_S}s"]
            self.kubectl(*bound, "persistentvolumeclaim", "--all")
        if others := [each for each in documents if each["kind"] not in _VOLUME_KINDS]:
            self._apply(others)

    def _apply(self, documents: Sequence[Document]) -> None:
        whole = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(whole))

    def delete(self, *names: str, grace_s: int | None = None, wait: bool = True) -> None:
        """Delete pods. Returns when they are gone from the API server, unless `wait` is false."""
        grace = [] if grace_s is None else [f"--grace-period={grace_s}"]
        self.kubectl(
            "delete", "pod", *names, *grace, f"--wait={str(wait).lower()}", timeout_s=_GONE_S
        )

    def get(self, name: str) -> Document:
        document: Document = json.loads(self.kubectl("get", "pod", name, "-o", "json").stdout)
        return document

    def uid(self, name: str) -> str:
        return str(self.get(name)["metadata"]["uid"])

    def status(self, name: str, container: str) -> Document:
        """The status of one container of a pod, init containers included."""
        status = self.get(name)["status"]
        both = status.get("initContainerStatuses", []) + status.get("containerStatuses", [])
        found: Document = next(each for each in both if each["name"] == container)
        return found

    def container_id(self, name: str, container: str) -> str:
        """containerd's id of one container of a pod."""
        return str(self.status(name, container)["containerID"]).removeprefix("containerd://")

    @contextmanager
    def node_setting(self, path: str, value: str) -> Iterator[None]:
        """The kernel of the node has `value` at `path`, and afterwards what it had."""
        before = self.node.exec(["cat", path]).stdout.strip()
        write = ["sh", "-c", 'echo "$2" >"$1"', "sh", path]
        self.node.exec([*write, value])
        try:
            yield
        finally:
            self.node.exec([*write, before])

    def describe(self, name: str) -> str:
        return self.kubectl("describe", "pod", name).stdout

    def run(
        self,
        pod: str,
        script: str,
        *,
        container: str | None = None,
        timeout_s: float = _KUBECTL_S,
        check: bool = True,
    ) -> Completed:
        """`kubectl exec POD -- sh -c SCRIPT`."""
        where = [] if container is None else ["--container", container]
        argv = ["exec", pod, *where, "--", "sh", "-c", script]
        return self.kubectl(*argv, timeout_s=timeout_s, check=check)

    def say(self, pod: str, script: str, *, container: str | None = None) -> str:
        """What `script` prints in the pod, without the last newline."""
        return self.run(pod, script, container=container).stdout.rstrip("\n")

    def attach(self, pod: str, container: str, line: str, *, until: str) -> str:
        """Say `line` to an attached container; what it printed up to the line with `until`, or to
        its end.

        Standard input stays open meanwhile: when it ends, containerd detaches the outputs, too.
        """
        argv = self.argv("attach", "--stdin", pod, "--container", container)
        heard = ""
        with child.started(argv, spoken_to=True) as attached:
            attached.tell(line)
            for answer in attached.lines(timeout_s=_SOON_S):
                heard += f"{answer}\n"
                if until in answer:
                    break
        return heard

    def fetch(self, pod: str, port: int) -> str:
        """What a pod's HTTP server on `port` answers through `kubectl port-forward`."""
        argv = self.argv("port-forward", f"pod/{pod}", f":{port}")
        with child.started(argv) as forward:
            # Forwarding from 127.0.0.1:PORT -> 8080
            line = next(forward.lines(timeout_s=_SOON_S), "")
            local = line.split("->")[0].rpartition(":")[2].strip()
            assert local, f"kubectl port-forward says {line!r}"
            # kubectl runs, and so listens, in the lab's network namespace.
            return run_in(
                f"/run/netns/{self.lab.shape.network.name}",
                lambda: _fetched(f"http://127.0.0.1:{local}/"),
            )

    def nas(
        self,
        name: str,
        *,
        server: str | None = None,
        path: str = "/csi",
        vers: str | None = "3",
        options: str | None = "noresvport,nolock",
        mount_options: Sequence[str] = (),
        **attributes: str,
    ) -> list[Document]:
        """A persistent volume on the NAS and a claim `name` bound to it. `server` None is the
        lab's NAS."""
        asked = {"server": self.lab.nas.address if server is None else server, "path": path}
        if vers is not None:
            asked["vers"] = vers
        if options is not None:
            asked["options"] = options
        return bound_volume(self.name, name, asked | attributes, mount_options)

    def mounts(self, uid: str) -> list[mountinfo.MountEntry]:
        """The node's mounts that belong to the pod `uid`, by kubelet's directory of the pod."""
        table = mountinfo.parse(self.node.exec(["cat", "/proc/self/mountinfo"]).stdout)
        return [entry for entry in table if f"/pods/{uid}/" in entry.mount_point]

    def nfs_mounts(self, *names: str) -> list[mountinfo.MountEntry]:
        """The NFS mounts that the node has for pods."""
        return [
            entry for name in names for entry in self.mounts(self.uid(name)) if entry.fstype in NFS
        ]

    def sandbox(self, uid: str) -> str:
        """The id of the sandbox that the pod `uid` has now. One that ended may have left its bundle
        beside it.
        """
        found: str | None = probe.on(self.node, "newest", uid=uid)
        assert found is not None, f"pod {uid} has no sandbox"
        return found


@contextmanager
def opened(lab: Lab, name: str) -> Iterator[Space]:
    """A new namespace, ready for pods. At the end of the block its pods and volumes are deleted,
    and that is awaited; the namespace itself goes later, for its controller begins only after five
    seconds."""
    space = Space(lab, f"{name}-{secrets.token_hex(2)}")
    lab.kubectl("create", "namespace", space.name)
    try:
        space.kubectl("wait", "--for=create", f"--timeout={_SOON_S}s", "serviceaccount/default")
        yield space
    finally:
        lab.kubectl("delete", "namespace", space.name, "--wait=false")
        space.kubectl("delete", "pod", "--all", timeout_s=_GONE_S)
        space.kubectl("delete", "persistentvolumeclaim", "--all", f"--timeout={_SOON_S}s")
        lab.kubectl("delete", "persistentvolume", "-l", f"kangaroo-test={space.name}")


def bound_volume(
    namespace: str,
    name: str,
    attributes: Mapping[str, str],
    mount_options: Sequence[str] = (),
    driver: str = DRIVER,
) -> list[Document]:
    """A PersistentVolume and the claim bound to it. PV names are cluster-wide, so the namespace
    is part of it."""
    full = f"{namespace}-{name}"
    size = {"storage": "1Gi"}
    volume: Document = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": full, "labels": {"kangaroo-test": namespace}},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "capacity": size,
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "mountOptions": list(mount_options),
            "claimRef": {"namespace": namespace, "name": name},
            "csi": {"driver": driver, "volumeHandle": full, "volumeAttributes": dict(attributes)},
        },
    }
    bound: Document = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "volumeName": full,
            "resources": {"requests": size},
        },
    }
    return [volume, bound]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as response:
        return str(response.read().decode().strip())
