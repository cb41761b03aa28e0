"""What is installed with elbotree: a software bill of materials, and whether advisories are known about any of it.

    python -m tests.audit PYTHON OUT     PYTHON of an environment with elbotree and nothing else that is not needed for it

Writes OUT (CycloneDX, JSON, reproducible) from that environment by cyclonedx-bom, then asks PyPI's advisories by pip-audit. Exit
status 0: every package was asked about and nothing is known; 1: something is; 2: the service did not answer for some packages,
about which nothing is said. Needs the extra `audit`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

TIMEOUT = 300  # seconds for the service


def bill(python: Path, out: Path) -> list[str]:
    """Write the bill of materials; name==version of each component."""
    command = [
        sys.executable,
        "-m",
        "cyclonedx_py",
        "environment",
        "--pyproject",
        "pyproject.toml",
        "--mc-type",
        "library",
    ]
    command += ["--output-reproducible", "--of", "JSON", "--validate", "-o", str(out), str(python)]
    subprocess.run(command, check=True)
    made = json.loads(out.read_text(encoding="utf-8"))
    assert made["bomFormat"] == "CycloneDX", made
    return sorted(f"{part['name']}=={part['version']}" for part in made["components"])


def advisories(python: Path, components: list[str]) -> tuple[list[str], list[str]]:
    """(what is known about which component, components that nothing could be learned about)."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    path = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    command = [sys.executable, "-m", "pip_audit", "--path", path, "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        answers: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return [], components
    known = [
        f"{answer['name']}=={answer['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'no version'}"
        for answer in answers
        for found in answer.get("vulns", ())
    ]
    asked = {f"{answer['name']}=={answer['version']}".lower() for answer in answers if "skip_reason" not in answer}
    return known, [component for component in components if component.lower().replace("_", "-") not in asked]


def main() -> None:
    python, out = Path(sys.argv[1]), Path(sys.argv[2])
    components = bill(python, out)
    print(f"{out}: {len(components)} components")
    known, unasked = advisories(
        python, [c for c in components if not c.startswith(("pip==", "setuptools==", "elbotree=="))]
    )
    for line in known:
        print(f"advisory: {line}")
    if unasked:
        print(f"the advisory service gave no answer about {len(unasked)} components: {', '.join(unasked)}")
    else:
        print(f"every component was asked about; {len(known)} advisories")
    sys.exit(1 if known else 2 if unasked else 0)


if __name__ == "__main__":
    main()
