"""What the project stands on: lower bounds that a target installs, few dependencies, no network at run time."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

from tests.oldest import PROJECT, oldest

MOST = 9  # dependencies of the core


def test_every_requirement_has_a_lower_bound() -> None:
    """`make oldest` installs them exactly."""
    found = oldest(["sklearn", "test"])
    assert "numpy==1.26" in found
    assert len(found) == MOST + 4


def test_the_core_has_few_dependencies() -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    assert len(project["dependencies"]) == MOST


def test_nothing_needs_the_network(tmp_path: Path) -> None:
    """The main paths, with every socket and every name look-up an error."""
    script = """
        import socket, sys, urllib.request

        def refused(*args, **kwargs):
            raise AssertionError(f"the network was asked for: {args}")

        class Refused(socket.socket):
            def __init__(self, family=-1, *args, **kwargs):
                if family != getattr(socket, "AF_UNIX", None):  # pipes between processes are no network
                    refused(family)
                super().__init__(family, *args, **kwargs)

        socket.socket = Refused
        socket.create_connection = socket.getaddrinfo = socket.gethostbyname = urllib.request.urlopen = refused

        import elbotree as et
        from elbotree.cli import main

        folder = sys.argv[1]
        for words in (
            ["example"], ["derive"], ["kernels", "--psi", "tanh"], ["evaluate", f"{folder}/p.json", "--tol", "1e-3"],
            ["fit", f"{folder}/p.json", "--iterations", "1", "--features", "1", "--tol", "1e-1", "--out", f"{folder}/fit"],
            ["tail", f"{folder}/p.json", "--row", "1,0", "--above", "2"], ["sample", f"{folder}/fit"],
            ["report", f"{folder}/p.json", "--tol", "1e-2"], ["doctor"], ["completion", "bash"],
        ):
            main(words, standalone_mode=False)
        layer = et.Layer([[1.0]], [0.5], [0.8], "relu")
        p1 = et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.4)
        et.fit_network([layer], p1, check_samples=100).save(f"{folder}/chain")
        et.load(f"{folder}/chain")
        et.gradient(et.Problem.load(f"{folder}/p.json"), 1e-2)
        try:
            socket.socket()
        except AssertionError:
            print("sockets were blocked")
    """
    from tests.stress.outcomes import SMALL

    (tmp_path / "p.json").write_text(json.dumps(SMALL))
    call = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("sockets were blocked\n")
