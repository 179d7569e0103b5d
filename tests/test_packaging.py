"""``pyproject.toml`` and the requirements files name the same packages."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def listed(name):
    """The requirements of a file, without what it includes."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {line.strip() for line in lines if line.strip() and not re.match(r"#|-r ", line)}


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("requirements-base.txt", "requirements.txt"), [d.split(";")[0].strip() for d in PROJECT["dependencies"]]),
        (("requirements-gpu.txt",), PROJECT["optional-dependencies"]["gpu"]),
        (("requirements-ray.txt",), PROJECT["optional-dependencies"]["ray"]),
        (("requirements-dev.txt",), PROJECT["optional-dependencies"]["dev"]),
    ],
)
def test_requirements_files_say_what_the_package_says(names, wanted):
    assert set().union(*map(listed, names)) == set(wanted)


def test_the_lock_pins_what_the_requirements_ask_for():
    locked = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^ \\;]+)", (ROOT / "requirements.lock").read_text(), re.M))
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==(.+)$", "\n".join(listed("requirements-base.txt")), re.M):
        assert locked[name.lower()] == version.strip(), name
    assert "--index" not in (ROOT / "requirements.lock").read_text()


def test_no_folder_of_tests_is_left_out(pytestconfig):
    patterns = pytestconfig.getini("norecursedirs")
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    assert [f for f in folders if any(fnmatch(f.name, pattern) for pattern in patterns)] == []
