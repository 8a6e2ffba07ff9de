"""Build the guest image: Debian packages in; kernel, initrd and read-only root out.

The packages are unpacked, not installed: no script of theirs runs, so no chroot is needed, and the
tools that finish the image (mkfs.erofs, depmod, zstd, Python) come from the same tree, run through
its own dynamic loader.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import kangaroo
from kangaroo.errors import FailedPrecondition
from kangaroo.guest import cpio, debian, kernel, manifest, recipe
from kangaroo.linux.process import run_sync
from kangaroo.wire.agent_protocol import PROTOCOL_VERSION

log = logging.getLogger(__name__)

_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LOADER = f"{_LIBRARIES}/ld-linux-x86-64.so.2"
_PYTHON = "usr/lib/python3.13"
_TOOL_TIMEOUT_S = 300.0
_UUID = "6b616e67-6172-4f6f-8000-000000000001"  # fixed: the image is reproducible
_EPOCH = 0


def build(output: Path) -> manifest.Manifest:
    """Make the image in the directory `output`, which must be absent or empty.

    Raises CommandFailed and DeadlineExceeded of the tools, FailedPrecondition when one is missing,
    or a module that the recipe names.
    """
    output.mkdir(parents=True, exist_ok=True)
    if any(output.iterdir()):
        raise FailedPrecondition(f"{output} is not empty")
    with tempfile.TemporaryDirectory(prefix="kangaroo-guest-") as work:
        return _Build(Path(work), output).run()


class _Build:
    """`packages` is the unpacked tree, `root` the tree that becomes the image."""

    def __init__(self, work: Path, output: Path) -> None:
        self.packages = work / "packages"
        self.root = work / "root"
        self.output = output
        self.release = ""

    def run(self) -> manifest.Manifest:
        debian.bootstrap(
            self.packages,
            (*recipe.PACKAGES, *recipe.BUILD_PACKAGES),
            variant="extract",
            security=True,
        )
        (modules,) = (self.packages / "usr/lib/modules").iterdir()
        self.release = modules.name
        self._layout()
        self._programs()
        self._python()
        self._agent()
        self._compile()
        self._bundle()
        self._modules()
        self._kernel()
        self._initrd()
        self._root_image()
        return manifest.write(
            self.output,
            protocol_version=PROTOCOL_VERSION,
            kangaroo_version=kangaroo.__version__,
            kernel=self.release,
        )

    def _layout(self) -> None:
        for name in recipe.DIRECTORIES:
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for name, target in recipe.LINKS.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
        for name, content in recipe.FILES.items():
            (self.root / name).write_text(content)
        _copy(self.packages / "usr/lib/os-release", self.root / "usr/lib/os-release")

    def _programs(self) -> None:
        """The programs and the shared libraries that they and Python's extension modules need."""
        wanted = [self.packages / name for name in recipe.PROGRAMS]
        libraries = {_LOADER.rpartition("/")[2], *recipe.EXTRA_LIBRARIES}
        for binary in (*wanted, *self._extension_modules()):
            libraries |= self._needed(binary)
        static = (self.packages / name for name in recipe.STATIC_PROGRAMS)
        for path in (*wanted, *static):
            _copy(path, self.root / path.relative_to(self.packages))
        for name in libraries:
            source = self.packages / _LIBRARIES / name
            _copy(source.resolve(), self.root / _LIBRARIES / name)
        (self.root / "usr/lib64" / Path(_LOADER).name).symlink_to(f"/{_LOADER}")
        (self.root / "usr/sbin/ip").symlink_to("../bin/ip")

    def _extension_modules(self) -> Iterator[Path]:
        return (self.packages / _PYTHON / "lib-dynload").glob("_ctypes.*")

    def _needed(self, binary: Path) -> set[str]:
        """Sonames of all libraries that the loader would map for `binary`."""
        listing = self._tool_argv("", "--list", str(binary.resolve()))
        names = re.findall(
            r"^\s*([^/\s]+) => (/\S+)", run_sync(listing, timeout_s=60), re.MULTILINE
        )
        return {name for name, path in names if path.startswith(str(self.packages))}

    def _python(self) -> None:
        left_out = shutil.ignore_patterns("__pycache__", *recipe.PYTHON_LEFT_OUT)
        shutil.copytree(
            self.packages / _PYTHON, self.root / _PYTHON, symlinks=True, ignore=left_out
        )
        for extension in (self.root / _PYTHON / "lib-dynload").iterdir():
            if not self._loadable(extension):
                extension.unlink()

    def _loadable(self, extension: Path) -> bool:
        """Whether all libraries of an extension module are in the image."""
        present = {path.name for path in (self.root / _LIBRARIES).iterdir()}
        return self._needed(self.packages / extension.relative_to(self.root)) <= present

    def _agent(self) -> None:
        """The agent's part of this very package, in the place of a standard library package: no
        path to set up.
        """
        source = Path(kangaroo.__file__).parent
        target = self.root / _PYTHON / "kangaroo"
        target.mkdir()
        for name in ("__init__.py", "errors.py"):
            shutil.copy(source / name, target / name)
        for name in recipe.AGENT_PACKAGES:
            left_out = [Path(path).name for path in recipe.AGENT_LEFT_OUT if path.startswith(name)]
            shutil.copytree(
                source / name,
                target / name,
                ignore=shutil.ignore_patterns("__pycache__", *left_out),
            )

    def _compile(self) -> None:
        """Byte code beside the source, never compared with it: the root is read-only and the sums
        are in the manifest.
        """
        argv = ["-I", "-S", "-m", "compileall", "-q"]
        argv += ["--invalidation-mode", "unchecked-hash", "-s", str(self.root), "-p", "/"]
        self._tool("usr/bin/python3.13", *argv, str(self.root / _PYTHON), PYTHONHOME="usr")

    def _bundle(self) -> None:
        """What the agent imports, in one file; found out by importing it."""
        target = self.root / recipe.AGENT_BUNDLE
        target.parent.mkdir(parents=True, exist_ok=True)
        # The image's own Python, which finds its library beside itself.
        argv = [str(self.root / "usr/bin/python3.13"), "-I", "-S", "-B"]
        self._tool(*argv, str(Path(__file__).parent / "bundle.py"), str(target))

    def _modules(self) -> None:
        self._depmod(self.packages)
        table = self._module_table(self.packages)
        names = [*recipe.INITRD_MODULES, *recipe.AGENT_MODULES, *recipe.ON_DEMAND_MODULES]
        for directory in recipe.ON_DEMAND_DIRECTORIES:
            names += kernel.beneath(directory, table)
        target = self.root / "usr/lib/modules" / self.release
        for path in kernel.closure(names, table):
            source = self.packages / "usr/lib/modules" / self.release / path
            kernel.unpack_module(source, target / path.removesuffix(".xz"))
        for name in ("modules.builtin", "modules.builtin.modinfo"):
            shutil.copy(self.packages / "usr/lib/modules" / self.release / name, target / name)
        loaded_order = self.packages / "usr/lib/modules" / self.release / "modules.order"
        (target / "modules.order").write_text(loaded_order.read_text())
        self._depmod(self.root)
        order = [
            f"/usr/lib/modules/{self.release}/{path.removesuffix('.xz')}\n"
            for path in kernel.closure(recipe.AGENT_MODULES, table)
        ]
        at_boot = self.root / recipe.AGENT_MODULES_LIST
        at_boot.parent.mkdir(parents=True, exist_ok=True)
        at_boot.write_text("".join(order))

    def _module_table(self, tree: Path) -> dict[str, list[str]]:
        modules = tree / "usr/lib/modules" / self.release
        return kernel.dependencies(
            (modules / "modules.dep").read_text(), (modules / "modules.builtin").read_text()
        )

    def _depmod(self, tree: Path) -> None:
        # depmod is one of kmod's names; through the loader it is told by argv[0].
        argv = self._tool_argv("depmod", "usr/bin/kmod", "-b", str(tree / "usr"), self.release)
        run_sync(argv, timeout_s=_TOOL_TIMEOUT_S)

    def _kernel(self) -> None:
        image = (self.packages / "boot" / f"vmlinuz-{self.release}").read_bytes()
        packed = self.output / "vmlinux.zst"
        packed.write_bytes(kernel.zstd_payload(image))
        target = self.output / manifest.KERNEL
        self._tool("usr/bin/zstd", "-d", "-q", "--rm", str(packed), "-o", str(target))

    def _initrd(self) -> None:
        modules = self.root / "usr/lib/modules" / self.release
        order = kernel.closure(recipe.INITRD_MODULES, self._module_table(self.root))
        members = [cpio.directory(name) for name in ("dev", "modules", "root")]
        members.append(cpio.character_device("dev/console", 5, 1))
        members.append(cpio.character_device("dev/kmsg", 1, 11))
        members.append(cpio.character_device("dev/null", 1, 3, 0o666))
        members.append(cpio.file("init", (Path(__file__).parent / "init.sh").read_bytes(), 0o755))
        busybox = (self.packages / "usr/bin/busybox").read_bytes()
        members.append(cpio.file("busybox", busybox, 0o755))
        for path in order:
            name = f"modules/{Path(path).name}"
            members.append(cpio.file(name, (modules / path).read_bytes()))
        listing = "".join(f"{Path(path).name}\n" for path in order)
        members.append(cpio.file("modules/order", listing.encode()))
        (self.output / manifest.INITRD).write_bytes(cpio.archive(members))

    def _root_image(self) -> None:
        argv = ["--all-root", f"-T{_EPOCH}", f"-U{_UUID}", "--quiet"]
        target = self.output / manifest.ROOT
        self._tool("usr/bin/mkfs.erofs", *argv, str(target), str(self.root))

    def _tool(self, name: str, *argv: str, **environment: str) -> None:
        """Run a program of the tree; a value of `environment` is a path in the tree."""
        extra = {key: str(self.packages / value) for key, value in environment.items()}
        run_sync(
            self._tool_argv("", name, *argv),
            timeout_s=_TOOL_TIMEOUT_S,
            env={**os.environ, "SOURCE_DATE_EPOCH": str(_EPOCH), **extra},
        )

    def _tool_argv(self, argv0: str, name: str, *argv: str) -> list[str]:
        path = self.packages / _LIBRARIES
        loader = [str(self.packages / _LOADER), "--library-path", str(path)]
        if argv0:
            loader += ["--argv0", argv0]
        return [*loader, name if name.startswith("-") else str(self.packages / name), *argv]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
