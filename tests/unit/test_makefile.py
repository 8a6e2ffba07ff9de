"""The Makefile: what comes before the tests, and a virtual environment that was interrupted."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(*arguments: str, directory: Path = CHECKOUT) -> str:
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    return subprocess.run(
        ["make", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout


@pytest.mark.parametrize(
    ("target", "build"),
    [
        ("test", "lab build"),
        ("test-node", "lab build"),
        ("csi-sanity", "lab build"),
        ("soak", "lab build --all"),
    ],
)
def test_all_is_built_before_the_clock_of_the_node_tests_runs(target: str, build: str) -> None:
    lines = make("--dry-run", target).splitlines()
    (built,) = (at for at, line in enumerate(lines) if line.endswith(f"kangaroo {build}"))
    (tested,) = (at for at, line in enumerate(lines) if "pytest" in line and "tests/node" in line)
    assert built < tested


# Makes a virtual environment that works, or says what was asked of it.
PYTHON = """\
#!/bin/sh
echo "python $*"
[ "$2" = venv ] || exit 0
rm -rf .venv
mkdir -p .venv/bin
printf '#!/bin/sh\\necho "$0 $*"\\n' > .venv/bin/python
chmod +x .venv/bin/python
cp .venv/bin/python .venv/bin/pip
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefile and what it needs for a virtual environment, with a Python of the test's own."""
    shutil.copy(CHECKOUT / "Makefile", tmp_path)
    (tmp_path / "requirements").mkdir()
    for name in ("requirements/dev.txt", "requirements/node.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def test_a_virtual_environment_without_pip_is_made_anew(checkout: Path) -> None:
    """As one that was interrupted: there is a Python in it already."""
    (checkout / ".venv/bin").mkdir(parents=True)
    python = checkout / ".venv/bin/python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    said = make("venv", f"PYTHON={checkout}/python", directory=checkout)
    assert "python -m venv --clear .venv" in said
    assert (checkout / ".venv/.installed").exists()


def test_one_that_works_stays_and_installing_is_announced(checkout: Path) -> None:
    make("venv", f"PYTHON={checkout}/python", directory=checkout)
    (checkout / ".venv/.installed").unlink()
    said = make("venv", f"PYTHON={checkout}/python", directory=checkout)
    assert "-m venv" not in said
    assert "installing what requirements/dev.txt locks" in said
