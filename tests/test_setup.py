"""`make install` on machines that lack something: it says what to install. The commands on the PATH are stand-ins."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
SYSTEM = "awk bash cp cut dirname head make mkdir sed sort touch".split()  # what any machine has
# A Python that passes the checks, makes an environment that holds itself, and writes down what pip is asked for.
PYTHON = """#!/bin/bash
case "$*" in
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  "-m pip "*) echo "$*" >> pip.log ;;
esac
"""
OLD_PYTHON = '#!/bin/bash\n[[ "$*" == *"(3, 11)"* ]] && exit 1\nexit 0\n'
DF = "#!/bin/bash\necho 'Filesystem 1024-blocks Used Available Capacity Mounted'\necho '/dev/x 9 9 {kb} 9% /'\n"
INSTALL = "-m pip install -c constraints.txt ./tokenizer -e .[dev]"


class Machine:
    """A checkout's set-up files in a folder of their own, and a PATH with stand-ins for the commands they call."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.bin = folder / "checkout", folder / "bin"
        self.bin.mkdir()
        for name in "Makefile pyproject.toml constraints.txt scripts/install.sh tokenizer/Cargo.toml".split():
            (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / name, self.checkout / name)
        (self.checkout / "tokenizer/src").mkdir()
        for name in ("tokenizer/pyproject.toml", "tokenizer/src/lib.rs"):
            (self.checkout / name).touch()
        for name in SYSTEM:
            found = shutil.which(name)
            assert found, f"{name} is not on this machine"
            (self.bin / name).symlink_to(found)
        self.command("cargo", "#!/bin/bash\necho 'cargo 1.95.0 (f2d3ce0bd 2026-03-21)'\n")
        self.command("cc", "#!/bin/bash\n")
        self.command("df", DF.format(kb=100 * 1024**2))
        self.command("python3", PYTHON)

    def command(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(script)
        path.chmod(0o755)

    def install(self, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.bin), "HOME": str(self.checkout), **settings}
        return subprocess.run(
            ["make", "install"], cwd=self.checkout, env=environment, capture_output=True, text=True, timeout=60
        )

    def pip_calls(self) -> list[str]:
        log = self.checkout / "pip.log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def assert_refused(machine: Machine, done: subprocess.CompletedProcess[str], *expected: str) -> None:
    assert done.returncode != 0
    for text in ("cannot install raychat", *expected):
        assert text in done.stderr
    assert not machine.pip_calls()
    assert not (machine.checkout / ".venv").exists()


def test_installs_crate_and_package_with_the_tested_versions(machine: Machine) -> None:
    done = machine.install()
    assert done.returncode == 0, done.stderr
    assert machine.pip_calls()[-1] == INSTALL


def test_installs_once_and_again_after_a_change(machine: Machine) -> None:
    machine.install()
    machine.install()
    assert machine.pip_calls().count(INSTALL) == 1
    later = time.time() + 5
    os.utime(machine.checkout / "tokenizer/src/lib.rs", (later, later))
    assert machine.install().returncode == 0
    assert machine.pip_calls().count(INSTALL) == 2


def test_without_cargo(machine: Machine) -> None:
    (machine.bin / "cargo").unlink()
    assert_refused(machine, machine.install(), "cargo", "https://rustup.rs")


def test_with_a_rust_toolchain_too_old(machine: Machine) -> None:
    machine.command("cargo", "#!/bin/bash\necho 'cargo 1.63.0'\n")
    assert_refused(machine, machine.install(), "cargo 1.63.0", "expected 1.", "rustup update")


def test_without_a_linker(machine: Machine) -> None:
    (machine.bin / "cc").unlink()
    assert_refused(machine, machine.install(), "build-essential")


def test_without_python(machine: Machine) -> None:
    (machine.bin / "python3").unlink()
    assert_refused(machine, machine.install(), "Python 3.11", "apt install")


def test_with_a_python_too_old(machine: Machine) -> None:
    machine.command("python3", OLD_PYTHON)
    assert_refused(machine, machine.install(), "Python 3.11")


def test_newest_python_that_runs_is_taken(machine: Machine) -> None:
    machine.command("python3", OLD_PYTHON)
    machine.command("python3.13", "#!/bin/bash\nexit 127\n")  # as a version manager's stand-in for an absent version
    machine.command("python3.12", PYTHON)
    done = machine.install()
    assert done.returncode == 0, done.stderr
    assert "python3.12" in done.stdout


def test_python_can_be_chosen(machine: Machine) -> None:
    assert_refused(machine, machine.install(PYTHON="/nowhere/python3"), "/nowhere/python3")


def test_without_the_venv_module(machine: Machine) -> None:
    script = '#!/bin/bash\n[[ "$*" == *ensurepip* ]] && exit 1\n[[ "$*" == *print* ]] && echo python3.12-venv\nexit 0\n'
    machine.command("python3", script)
    assert_refused(machine, machine.install(), "python3.12-venv")


def test_without_disk(machine: Machine) -> None:
    machine.command("df", DF.format(kb=3 * 1024**2))
    assert_refused(machine, machine.install(), "3 GB free", "expected 10 GB")


def test_disk_that_is_asked_for_can_be_lowered(machine: Machine) -> None:
    machine.command("df", DF.format(kb=3 * 1024**2))
    assert machine.install(MIN_FREE_GB="2").returncode == 0


def test_environment_that_does_not_work_is_named(machine: Machine) -> None:
    (machine.checkout / ".venv/bin").mkdir(parents=True)
    (machine.checkout / ".venv/bin/python").symlink_to("/bin/false")
    done = machine.install()
    assert done.returncode != 0
    assert "make clean-all" in done.stderr


def test_failed_installation_is_tried_again(machine: Machine) -> None:
    machine.command("python3", PYTHON.replace(">> pip.log ;;", ">> pip.log; exit 1 ;;"))
    assert machine.install().returncode != 0
    assert machine.install().returncode != 0
    assert len(machine.pip_calls()) == 2


def test_make_alone_prints_its_targets() -> None:
    shown = subprocess.run(["make"], cwd=REPO, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0
    for target in ("speedrun-tiny", "test", "install", "lint", "typecheck", "fmt", "test-rust", "clean"):
        assert f"make {target} " in shown.stdout
