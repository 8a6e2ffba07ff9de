"""`kangaroo lab …`: the lab on the command line."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kangaroo.errors import NotFound
from kangaroo_lab import artefacts
from kangaroo_lab.lab import Lab
from kangaroo_lab.node import Node
from kangaroo_lab.progress import Steps

Verb = Callable[[Lab, argparse.Namespace], int]

# No argument starts with NUL, so none is taken for an option: `kubectl -n default …` arrives whole.
_VERBATIM = {"prefix_chars": "\0", "add_help": False}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `lab` and its verbs."""
    lab = subparsers.add_parser("lab", help="a real node, NAS and Kubernetes on this machine")
    verbs = lab.add_subparsers(dest="verb", required=True)
    build = _verb(
        verbs, "build", _build, "build what the lab and its tests need, if the cache has it not"
    )
    build.add_argument(
        "--all", action="store_true", help="and the CSI project's sidecars, which few tests need"
    )
    up = _verb(verbs, "up", _up, "bring the lab up; nothing when it is, but more nodes")
    up.add_argument("--nodes", type=int, default=1, choices=(1, 2, 3))
    up.add_argument("--memory-mib", type=positive, metavar="MIB", help="memory of each node")
    _verb(verbs, "status", _status, "what runs, and where its logs are")
    kubectl = _verb(verbs, "kubectl", _kubectl, "kubectl as the administrator", **_VERBATIM)
    _rest(kubectl, "arguments")
    execute = _verb(verbs, "exec", _exec, "run a command, or a shell, on a node")
    execute.add_argument("node")
    _rest(execute, "command")
    logs = _verb(verbs, "logs", _logs, "show the log of a part; without one, list them")
    logs.add_argument("part", nargs="?")
    logs.add_argument("-f", "--follow", action="store_true")
    deploy = _verb(verbs, "deploy", _deploy, "put this checkout's code on the running nodes")
    deploy.add_argument("--no-guest", action="store_true", help="leave the guest image as it is")
    _verb(verbs, "down", _down, "take everything away")


def positive(text: str) -> int:
    """A number from 1 on, as an argument. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def existing(text: str) -> Path:
    """A file that is there, as an argument. Raises ArgumentTypeError."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is no file")
    return path


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Verb,
    about: str,
    **settings: Any,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=about, **settings)
    parser.set_defaults(run=lambda arguments: run(Lab.open(), arguments))
    return parser


def _rest(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(name, nargs=argparse.REMAINDER, action=_Rest)


class _Rest(argparse.Action):
    """Whatever follows, without the `--` that may stand before it, as `kubectl exec` has it."""

    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        _option: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values[1:] if values[:1] == ["--"] else values)


def _build(lab: Lab, arguments: argparse.Namespace) -> int:
    provisioning = artefacts.for_provisioning() if arguments.all else {}
    lab.build({**artefacts.everything(), **artefacts.for_tests(), **provisioning})
    return 0


def _up(lab: Lab, arguments: argparse.Namespace) -> int:
    if lab.up(arguments.nodes, memory_mib=arguments.memory_mib):
        print(f"The lab is up. Logs: {lab.logs}")
    else:
        print(f"The lab was up already. Logs: {lab.logs}")
    return 0


def _status(lab: Lab, _: argparse.Namespace) -> int:
    print(f"directory  {lab.directory}\nlogs       {lab.logs}")
    if lab.store.shape is None:
        print("The lab is down.")
        return 1
    print(f"nodes run  {'emulated' if lab.emulated else 'on KVM'}")
    print(f"NAS        {lab.nas.address}, data in {lab.nas.root}")
    for node in lab.nodes.values():
        print(f"{node.name}      {node.address}, console {node.console}")
    for name, daemon in lab.parts().items():
        state = f"runs, pid {daemon.pid}" if daemon and daemon.alive() else "ENDED"
        print(f"  {name:24} {state:20} {daemon.log if daemon else ''}".rstrip())
    if lab.usable():
        print(lab.kubectl("get", "nodes", "-o", "wide").stdout, end="")
    if lab.running():
        return 0
    if lab.usable():
        print("The NAS is not whole: kangaroo lab up starts it again")
    elif lab.ended():
        print("The lab has ended: kangaroo lab up starts it anew, kangaroo lab down cleans up")
    else:
        print("The lab is not whole: kangaroo lab down")
    return 1


def _kubectl(lab: Lab, arguments: argparse.Namespace) -> int:
    return _replace(lab.control_plane.kubectl(*arguments.arguments))


def _exec(lab: Lab, arguments: argparse.Namespace) -> int:
    node = _node(lab, arguments.node)
    command = arguments.command or ["bash", "-l"]
    return _replace(node.ssh(*command, terminal=sys.stdin.isatty()))


def _logs(lab: Lab, arguments: argparse.Namespace) -> int:
    parts = {path.stem: path for path in sorted(lab.logs.glob("*.log"))}
    if arguments.part is None:
        print("\n".join(f"{name:28} {path}" for name, path in parts.items()))
        print("and on a node: kubelet, containerd, csi, shim (NODE/PART, such as node1/kubelet)")
        return 0
    if "/" in arguments.part:
        return _node_logs(lab, *arguments.part.split("/", 1), follow=arguments.follow)
    if arguments.part not in parts:
        raise NotFound(f"no log of {arguments.part!r}", hint="kangaroo lab logs lists them")
    return _show(parts[arguments.part], follow=arguments.follow)


def _node_logs(lab: Lab, node: str, part: str, *, follow: bool) -> int:
    journal = ["journalctl", "--no-pager", *(["-f"] if follow else [])]
    unit = {"csi": "kangaroo-csi", "shim": "containerd"}.get(part, part)
    return _replace(_node(lab, node).ssh(*journal, "-u", unit))


def _show(path: Path, *, follow: bool) -> int:
    command = ["tail", "-n", "+1", *(["-f"] if follow else []), str(path)]
    return subprocess.run(command, check=False).returncode


def _deploy(lab: Lab, arguments: argparse.Namespace) -> int:
    with _step(lab, "deploy"):
        lab.deploy(guest=not arguments.no_guest)
    print(f"deployed to {', '.join(lab.nodes)}")
    return 0


def _down(lab: Lab, _: argparse.Namespace) -> int:
    with _step(lab, "lab down"):
        was_up = lab.down()
    print("The lab is down." if was_up else "The lab was down already.")
    print(f"Kept: {lab.logs} and {lab.directory / 'nas'}")
    return 0


def _step(lab: Lab, name: str) -> AbstractContextManager[None]:
    """Something that takes a while, with its progress shown."""
    return Steps([name], logs=lab.logs).step(name)


def _node(lab: Lab, name: str) -> Node:
    if name not in lab.nodes:
        raise NotFound(f"no node {name!r}", hint=f"there are {', '.join(lab.nodes)}")
    return lab.nodes[name]


def _replace(argv: list[str]) -> int:
    os.execvp(argv[0], argv)
