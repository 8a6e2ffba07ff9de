"""What a sandboxed container finds around itself, and what a sandbox refuses."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from tests.node import child, inside, pods, waiting
from tests.node.pods import IDLE, container, pod

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

REFUSED_S = 120

VOLUMES = {
    "/disk": "disk",
    "/memory": "memory",
    "/etc/secret": "secret",
    "/etc/settings": "settings",
    "/etc/about": "about",
}

# Below /proc/sys: no namespace has these of its own.
SYSCTLS = (
    "fs/inotify/max_user_instances",
    "fs/inotify/max_user_watches",
    "vm/max_map_count",
    "vm/overcommit_memory",
)
# A new network namespace has these of the node's.
TCP = ("net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem", "net/ipv4/tcp_congestion_control")
RNG = "/sys/class/misc/hw_random/rng_current"
WINDOW = "4096\t131072\t5000000"
OWN_SYSCTLS = {"net.ipv4.tcp_keepalive_time": "600", "kernel.shm_rmid_forced": "1"}

# The node's own programs: busybox has no iptables.
LIBRARY = "/node/lib/x86_64-linux-gnu"
NODES = f"{LIBRARY}/ld-linux-x86-64.so.2 --library-path {LIBRARY} /node/sbin"
IPTABLES = f"XTABLES_LIBDIR={LIBRARY}/xtables XTABLES_LOCKFILE=/tmp/lock {NODES}"

RULES = (
    "-j REJECT",
    "-m limit --limit 5/min -j LOG --log-prefix out:",
    "-m state --state NEW,ESTABLISHED -j ACCEPT",
    "-m recent --name seen --set",
    "-m statistic --mode random --probability 0.5 -j DROP",
    "--syn -j TCPMSS --set-mss 1000",
)

# VFS_CAP_REVISION_2 and CAP_NET_BIND_SERVICE, permitted and effective (linux/capability.h).
SET_CAPABILITY = """
import os, struct, sys
value = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
os.setxattr(sys.argv[1], "security.capability", value)
"""


def secret(value: str) -> pods.Document:
    data = {"key": base64.b64encode(value.encode()).decode()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "secret"}, "data": data}


def settings(value: str) -> pods.Document:
    data = {"key": value}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": data}


def sysctls(values: dict[str, str]) -> list[pods.Document]:
    return [{"name": name, "value": value} for name, value in values.items()]


def surrounded_pod() -> pods.Document:
    """A pod with one of everything that kubelet puts around a container."""
    field = {"fieldRef": {"fieldPath": "status.podIP"}}
    label = {"path": "colour", "fieldRef": {"fieldPath": "metadata.labels['colour']"}}
    user = {"runAsUser": 1000, "runAsGroup": 1001, "readOnlyRootFilesystem": True}
    return pod(
        "main",
        container(
            "user",
            mounts=VOLUMES,
            env=[{"name": "POD_IP", "valueFrom": field}, {"name": "PLAIN", "value": "a b $x"}],
            securityContext=user,
        ),
        container("root", f"httpd -p 8080 -h /disk; {IDLE}", mounts=VOLUMES),
        container(
            "admin",
            mounts=[
                {"name": "node", "mountPath": "/node"},
                {"name": "disk", "mountPath": "/disk", "readOnly": True},
            ],
            securityContext={"capabilities": {"add": ["NET_ADMIN"]}},
        ),
        metadata={"labels": {"colour": "red"}},
        hostname="the-host",
        securityContext={"fsGroup": 2000, "sysctls": sysctls(OWN_SYSCTLS)},
        hostAliases=[{"ip": "192.0.2.7", "hostnames": ["alias.example.test"]}],
        dnsPolicy="None",
        dnsConfig={"nameservers": ["192.0.2.53"], "searches": ["example.test"]},
        volumes=[
            {"name": "disk", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
            {"name": "secret", "secret": {"secretName": "secret"}},
            {"name": "settings", "configMap": {"name": "settings"}},
            {"name": "about", "downwardAPI": {"items": [label]}},
            {"name": "node", "hostPath": {"path": "/usr"}},
        ],
    )


def peer_pod() -> pods.Document:
    return pod(
        "peer", container("web", f"echo peer > /tmp/i; httpd -p 8080 -h /tmp; {IDLE}"), runtime=None
    )


@pytest.fixture(scope="module")
def space(lab: Lab) -> Iterator[pods.Space]:
    with pods.opened(lab, "environment") as space:
        with space.node_setting("/proc/sys/net/ipv4/tcp_rmem", WINDOW):
            space.apply(secret("one"), settings("one"), peer_pod(), surrounded_pod())
            waiting.ready(space, "main", "peer")
        yield space


def test_environment_variables(space: pods.Space) -> None:
    status = space.get("main")["status"]
    said = space.say("main", 'echo "$POD_IP"; echo "$PLAIN"', container="user")
    assert said.split("\n") == [status["podIP"], "a b $x"]


def test_downward_api_volume(space: pods.Space) -> None:
    assert space.say("main", "cat /etc/about/colour", container="user") == "red"


def test_host_name_hosts_and_dns(space: pods.Space) -> None:
    assert space.say("main", "hostname", container="user") == "the-host"
    hosts = space.say("main", "cat /etc/hosts", container="user")
    assert "192.0.2.7\talias.example.test" in hosts
    assert f"{space.get('main')['status']['podIP']}\tthe-host" in hosts
    resolver = space.say("main", "cat /etc/resolv.conf", container="user").splitlines()
    assert "nameserver 192.0.2.53" in resolver
    assert "search example.test" in resolver


def test_empty_directories_are_shared_by_the_containers(space: pods.Space) -> None:
    for directory in ("/disk", "/memory"):
        space.run("main", f"echo from-user > {directory}/file", container="user")
        assert space.say("main", f"cat {directory}/file", container="root") == "from-user"


def test_what_containers_share_is_one_file_system(space: pods.Space) -> None:
    """A pipe is its inode's, as sockets and locks are, also for who may only read; and again after
    a restart of one of the two.
    """

    def piped(word: str) -> list[str]:
        reader = space.argv("exec", "main", "--container", "admin", "--", "cat", "/disk/pipe")
        with child.started(reader) as reading:
            space.run("main", f"timeout 60 sh -c 'echo {word} > /disk/pipe'", container="root")
            return list(reading.lines(timeout_s=waiting.EVENT_S))

    space.run("main", "mkfifo /disk/pipe", container="root")
    assert piped("first") == ["first"]
    refused = space.run("main", "touch /disk/new", container="admin", check=False)
    assert "Read-only file system" in refused.stderr
    space.run("main", "kill 1", container="admin", check=False)
    waiting.restarted(space, "main", "admin")
    waiting.ready(space, "main")
    assert piped("second") == ["second"]


def test_user_group_and_fs_group(space: pods.Space) -> None:
    ids = space.say("main", "id -u; id -g; id -G", container="user").split("\n")
    assert ids[:2] == ["1000", "1001"]
    assert set(ids[2].split()) == {"1001", "2000"}
    assert space.say("main", "stat -c %g /disk", container="user") == "2000"
    space.run("main", "touch /disk/mine", container="user")
    owner = space.say("main", "stat -c %u:%g /disk/mine", container="user")
    assert owner == "1000:2000", "the directory's set-group-id bit is kept by the share"


def test_kernel_settings_are_those_of_the_node(space: pods.Space) -> None:
    read = f"cd /proc/sys && cat {' '.join(SYSCTLS)}"
    in_guest = space.say("main", read, container="root").split()
    assert in_guest == space.say("peer", read).split()
    assert in_guest[-1] == "1", "kubelet sets it, and no kernel has it by itself"


def test_tcp_is_set_as_in_a_namespace_of_the_node(space: pods.Space) -> None:
    read = f"cd /proc/sys && cat {' '.join(TCP)}"
    in_guest = space.say("main", read, container="root")
    assert in_guest == space.say("peer", read)
    assert in_guest.splitlines()[0] == WINDOW


def test_a_pods_own_sysctls(space: pods.Space) -> None:
    files = " ".join(f"/proc/sys/{name.replace('.', '/')}" for name in OWN_SYSCTLS)
    found = space.say("main", f"cat {files}", container="user").split()
    assert found == [*OWN_SYSCTLS.values()]


def test_the_machine_has_what_a_guest_needs_and_no_more(space: pods.Space) -> None:
    assert space.say("main", f"cat {RNG}", container="root") == "virtio_rng.0"
    flags = "grep -m 1 ^flags /proc/cpuinfo"
    assert {"svm", "vmx"} & set(space.say("peer", flags).split())
    assert not {"svm", "vmx"} & set(space.say("main", flags, container="root").split())


def test_limits_are_those_of_the_node(space: pods.Space) -> None:
    read = "grep -E 'Max (processes|core file size)' /proc/self/limits"
    assert space.say("main", read, container="root") == space.say("peer", read)


def test_flags_of_a_volume_hold_by_virtio_fs(space: pods.Space) -> None:
    """As with runc 1.1. Newer ones drop the flags of what a bind is of."""
    one = container("one", mounts={"/hardened": "hardened", "/disk": "disk"})
    volumes = [pods.claim("hardened"), {"name": "disk", "emptyDir": {}}]
    space.apply(
        *space.nas("hardened", mount_options=["noexec,nosuid"]),
        pod("guest", one, volumes=volumes),
        pod("node", one, runtime=None, volumes=volumes),
    )
    waiting.ready(space, "guest", "node")
    for name in ("guest", "node"):
        mounted = inside.mounted(space, name, "one", "/hardened", "/disk")
        assert {"noexec", "nosuid"} <= set(mounted["/hardened"].options), name
        assert not {"noexec", "nosuid"} & set(mounted["/disk"].options), name
        refused = space.run(name, "cp /bin/sh /hardened; /hardened/sh -c true", check=False)
        assert "Permission denied" in refused.stderr, name
        space.run(name, "rm /hardened/sh && cp /bin/sh /disk && /disk/sh -c true")
    space.delete("guest", "node")


def test_root_filesystem_is_read_only_where_asked(space: pods.Space) -> None:
    refused = space.run("main", "echo x > /file", container="user", check=False)
    assert refused.status != 0
    assert "Read-only file system" in refused.stderr
    assert space.run("main", "echo x > /file", container="root").status == 0


def test_secret_and_config_map_updates_arrive(space: pods.Space) -> None:
    read = "cat /etc/secret/key /etc/settings/key"
    assert space.say("main", read, container="user") == "oneone"
    space.apply(secret("two"), settings("two"))
    # A change of the pod makes kubelet look at its volumes at once instead of within its next sync
    # period.
    space.kubectl("annotate", "pod", "main", "touched=1")
    # The share has no change notification, so the container has to look again.
    until = f'until [ "$({read})" = twotwo ]; do sleep 1; done'
    space.run("main", until, container="user", timeout_s=180)


def test_pod_network_reaches_a_pod_both_ways_and_the_nas(space: pods.Space) -> None:
    address = {name: space.get(name)["status"]["podIP"] for name in ("main", "peer")}
    space.run("main", "echo sandboxed > /disk/i", container="root")
    fetch = "wget -qO- -T 30 http://{}:8080/i"
    assert space.say("main", fetch.format(address["peer"]), container="root") == "peer"
    assert space.say("peer", fetch.format(address["main"])) == "sandboxed"
    nas = f"nc -w 10 {space.lab.nas.address} 2049 < /dev/null"
    space.run("main", nas, container="root")
    none = space.run(
        "main", f"nc -w 10 {address['peer']} 2049 < /dev/null", container="root", check=False
    )
    assert none.status != 0, "nc succeeds where nothing listens: the check above shows nothing"


def test_guest_takes_the_pods_interface(space: pods.Space) -> None:
    mine = space.get("main")["status"]["podIP"]
    inside = space.say("main", "ip -4 -o address show dev eth0; ip route", container="root")
    assert f"inet {mine}/" in inside
    assert "default via" in inside


@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_a_pod_has_a_firewall_of_its_own(space: pods.Space, kind: str) -> None:
    """As the proxies of service meshes make it, with iptables of either kind."""
    rule = "OUTPUT -p tcp --dport 81 -m owner --uid-owner 0 -j REDIRECT --to-ports 8080"
    table = f"{IPTABLES}/xtables-{kind}-multi iptables -t nat"
    space.run("main", "echo redirected > /disk/i", container="root")
    fetch = "wget -qO- -T 30 http://127.0.0.1:81/i"
    assert space.run("main", fetch, container="root", check=False).status != 0
    space.run("main", f"{table} -A {rule}", container="admin")
    assert space.say("main", fetch, container="root") == "redirected"
    space.run("main", f"{table} -D {rule}", container="admin")


@pytest.mark.parametrize("kind", ["nft", "legacy"])
@pytest.mark.parametrize("rule", RULES)
def test_a_firewall_has_rules_of_every_kind(space: pods.Space, kind: str, rule: str) -> None:
    """What the guest's kernel lacks, iptables does not find."""
    calls = [
        f"{IPTABLES}/xtables-{kind}-multi {program} {verb} OUTPUT -p tcp --dport 82 {rule}"
        for program in ("iptables", "ip6tables")
        for verb in ("-A", "-D")
    ]
    space.run("main", " && ".join(calls), container="admin")


@pytest.fixture
def capable(space: pods.Space) -> Iterator[str]:
    """A directory of the node with a busybox that may bind any port, whoever runs it."""
    directory = f"/var/lib/capable-{secrets.token_hex(4)}"
    node = space.node
    node.exec(["install", "-D", "/usr/bin/busybox", f"{directory}/busybox"])
    node.exec(["python3", "-c", SET_CAPABILITY, f"{directory}/busybox"])
    yield directory
    node.exec(["rm", "-r", directory])


def test_capabilities_of_files_are_in_force(space: pods.Space, capable: str) -> None:
    """As images have them whose programs are run by users other than root (ingress-nginx)."""
    serve = "/capable/busybox httpd -p 80 -h /tmp"
    one = container("one", mounts={"/capable": "capable"}, securityContext={"runAsUser": 1000})
    volume = {"name": "capable", "hostPath": {"path": capable}}
    space.apply(pod("capable", one, volumes=[volume]))
    waiting.ready(space, "capable")
    refused = space.run("capable", "httpd -p 80 -h /tmp", check=False)
    assert "Permission denied" in refused.stderr
    space.run("capable", f"echo served > /tmp/i; {serve}")
    assert space.say("capable", "wget -qO- -T 30 http://127.0.0.1/i") == "served"
    space.delete("capable")


REFUSED: dict[str, tuple[pods.Document, pods.Document, str]] = {
    "privileged": (container("main", securityContext={"privileged": True}), {}, "privileged"),
    "host-network": (container("main"), {"hostNetwork": True}, "host ?network"),
    "host-pid": (container("main"), {"hostPID": True}, "host ?pid"),
    "sysctl": (
        container("main"),
        {"securityContext": {"sysctls": sysctls({"kernel.shm_rmid_forced": "7"})}},
        r"sysctl kernel\.shm_rmid_forced: the guest refuses '7'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_sandbox_cannot_do_is_refused(space: pods.Space, name: str) -> None:
    main, spec, pattern = REFUSED[name]
    space.apply(pod(name, main, **spec))
    waiting.event(space, name, f"(?i){pattern}", timeout_s=REFUSED_S)
    assert space.get(name)["status"]["phase"] == "Pending"
    space.delete(name)


@pytest.fixture
def block_device(space: pods.Space) -> Iterator[str]:
    """A block device of the node."""
    script = (
        "truncate -s 16M /run/kangaroo-test-disk && losetup --find --show /run/kangaroo-test-disk"
    )
    device = space.node.exec(["sh", "-c", script]).stdout.strip()
    yield device
    space.node.exec(["sh", "-c", f"losetup -d {device}; rm /run/kangaroo-test-disk"])


def test_block_device_is_refused(space: pods.Space, block_device: str) -> None:
    volume, bound = pods.bound_volume(space.name, "raw", {}, ())
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node1"]}
    del volume["spec"]["csi"]
    volume["spec"] |= {
        "volumeMode": "Block",
        "accessModes": ["ReadWriteOnce"],
        "local": {"path": block_device},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
    }
    bound["spec"] |= {"volumeMode": "Block", "accessModes": ["ReadWriteOnce"]}
    device = [{"name": "raw", "devicePath": "/dev/raw"}]

    raw = pod("raw", container("main", volumeDevices=device), volumes=[pods.claim("raw")])
    space.apply(volume, bound, raw)
    waiting.event(space, "raw", "(?i)block device", timeout_s=REFUSED_S + waiting.START_S)
    assert "running" not in space.status("raw", "main")["state"]
    space.delete("raw")
