"""The command line: what it prints where, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from scipy.special import log_ndtr

import elbotree as et
from elbotree.cli import main
from elbotree.runtime.values import NAMES

VERBS = [
    "derive",
    "kernels",
    "evaluate",
    "fit",
    "sample",
    "tail",
    "compile",
    "report",
    "doctor",
    "example",
    "completion",
]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def one_line_error(result: Result, status: int, pattern: str) -> None:
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert re.fullmatch(rf"error: .*{pattern}.*\n", result.stderr), result.stderr


def on_a_terminal(*arguments: object, **more: str) -> str:
    """What a terminal shows of a command (standard error is no terminal)."""
    import pty

    ours, theirs = pty.openpty()
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    command = [sys.executable, "-m", "elbotree", *map(str, arguments)]
    environment = kept | {"TERM": "xterm-256color", "COLUMNS": "120"} | more
    done = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=environment)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # Linux says "input/output error" where the other end is closed
        while piece := os.read(ours, 4096):
            seen += piece
    assert done.communicate()[1] == b""  # so there is no progress
    return seen.decode()


needs_pty = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")


def test_help_lists_the_verbs_in_the_order_of_use() -> None:
    lines = run("--help").stdout.split("Commands:")[1].splitlines()
    assert [line.split()[0] for line in lines if line.strip()] == VERBS


def examples(verb: str) -> list[list[str]]:
    """The commands in a verb's help, as arguments, without `elbotree` and redirections."""
    shown = re.findall(rf"^  elbotree ({verb} .*|{verb})$", run(verb, "--help").stdout, flags=re.MULTILINE)
    return [shlex.split(re.sub(r"\s>>? \S+$", "", line)) for line in shown]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the examples name: problem.json as `elbotree example` prints it, and a fit."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "problem.json").write_text(run("example").stdout)
    problem = et.Problem.load(folder / "problem.json")
    values = et.evaluate(problem, tol=1e-4)  # what the verbs ask for unless told otherwise
    et.Fit(problem, values, (), "not trained").save(folder / "fitted")
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_in_every_verbs_help_work(verb: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("elbotree.fit", lambda *_, **__: et.load("fitted"))  # training is tested elsewhere
    if verb in ("compile", "fit"):
        write_network(place / "network.onnx")
    commands = examples(verb)
    assert commands
    for command in commands:
        result = run(*command)
        assert result.exit_code == 0, (command, result.output)


def write_network(path: Path) -> None:
    """relu(x W + b) as an ONNX file."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2]) for name in ("x", "z")]
    arrays = {"W": np.array([[1.0, -1.0], [0.5, 2.0]]), "b": np.array([0.1, -0.2])}
    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    nodes = [helper.make_node("Gemm", ["x", "W", "b"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)


def test_kernels_as_json(tmp_path: Path) -> None:
    printed = json.loads(run("kernels", "--family", "normal,bernoulli", "--format", "json").stdout)
    assert printed["source"] == et.generate("relu", ["bernoulli", "normal"]).source
    assert printed["families"] == ["bernoulli", "normal"]
    target = tmp_path / "k.py"
    assert json.loads(run("kernels", "--out", target, "--format", "json").stdout)["written"] == str(target)
    assert json.loads(run("kernels", "--check", target, "--format", "json").stdout)["differences"] == []
    assert "explanation" in json.loads(run("kernels", "--explain", "--format", "json").stdout)


def test_every_verb_that_has_results_takes_the_three_formats() -> None:
    for verb in set(VERBS) - {"example", "completion"}:
        choices = re.findall(r"--format \[([^\]]*)\]", run(verb, "--help").stdout)[0]
        assert {"rich", "plain", "json"} <= set(re.split(r"[|\s]+", choices)), verb


@needs_pty
def test_source_on_a_terminal_keeps_its_text() -> None:
    seen = on_a_terminal("kernels", "--family", "bernoulli")
    assert "\x1b[" in seen
    bare = re.sub(r"\x1b\[[0-9;]*m", "", seen).replace("\r\n", "\n")
    source = et.generate("relu", "bernoulli").source.rstrip("\n")
    assert [line.rstrip() for line in bare.rstrip("\n").split("\n")] == [line.rstrip() for line in source.split("\n")]


@pytest.mark.parametrize("verb", ["evaluate", "sample", "tail", "report", "doctor"])
def test_json_stands_alone_on_standard_output(verb: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    source = [] if verb == "doctor" else ["problem.json"]
    more = {"tail": ["--row", "1,0", "--above", "1"], "evaluate": ["--check-samples", "500"]}.get(verb, [])
    result = run(verb, *source, *more, "--format", "json")
    assert result.exit_code == 0, result.output
    json.loads(result.stdout)
    assert result.stderr == ""


@needs_pty
@pytest.mark.parametrize("colours", [True, False])
def test_colour_on_a_terminal_and_none_with_no_color(colours: bool, problem_file: Path) -> None:
    seen = on_a_terminal("evaluate", problem_file, "--tol", "1e-2", **({} if colours else {"NO_COLOR": "1"}))
    assert "\x1b[2m" in seen  # dim is no colour
    assert (re.search(r"\x1b\[[0-9;]*3[0-9]", seen) is not None) == colours


@needs_pty
def test_a_narrow_terminal_loses_no_digits(problem_file: Path) -> None:
    seen = on_a_terminal("evaluate", problem_file, "--tol", "1e-4", "--check-samples", "1000", COLUMNS="60")
    values = et.evaluate(et.Problem.load(problem_file), tol=1e-4, check_samples=1000)
    bare = re.sub(r"\x1b\[[0-9;]*m", "", seen)
    assert "…" not in bare
    assert all(f"{term.value:.10g}" in bare and f"{term.check:.6g}" in bare for term in values.values())


def test_a_reader_that_stops_early_is_no_error(problem_file: Path) -> None:
    command = f"{sys.executable} -m elbotree sample {problem_file} -n 20000 | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_ask_elbotree_for_what_fits(shell: str) -> None:
    assert "_ELBOTREE_COMPLETE" in run("completion", shell).stdout
    words = {"COMP_WORDS": "elbotree evaluate --format ", "COMP_CWORD": "3"}
    if shell == "fish":
        words = {"COMP_WORDS": "elbotree evaluate --format ", "COMP_CWORD": ""}
    environment = os.environ | words | {"_ELBOTREE_COMPLETE": f"{shell}_complete"}
    done = subprocess.run(
        [sys.executable, "-c", "from elbotree.cli import main; main(prog_name='elbotree')"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert [style for style in ("rich", "plain", "json") if style in done.stdout] == ["rich", "plain", "json"]


def test_help_loads_nothing_slow() -> None:
    """What makes --help quick, as a fact about imports: no test depends on a clock."""
    code = (
        "import sys; from elbotree.cli import main; main(['--help'], standalone_mode=False); "
        "print([m for m in ('numpy', 'scipy', 'sympy', 'networkx', 'numba', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_derive_prints_the_tree_and_one_node() -> None:
    assert run("derive", "--format", "plain").stdout == f"{et.derive()}\n"
    described = run("derive", "--node", "T2").stdout
    assert described.startswith("T2 = ")
    assert all(word in described for word in ("rule", "paper", "joint law", "expand_squared_norm"))


@pytest.mark.parametrize(
    ("style", "start"), [("latex", r"\begin{align*}"), ("mermaid", "flowchart TD"), ("dot", "digraph")]
)
def test_derive_in_other_notations(style: str, start: str) -> None:
    printed = run("derive", "--format", style).stdout
    assert printed.startswith(start)
    assert printed.count("T3") + printed.count("T_3") > 0


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("dL/dB", "dL/dB = B_ij/σ₂² E[V_j(c_j)]"),
        ("b2*", "B2* = M (D + G)⁻¹"),
        ("sigma2*^2", "sigma2*^2 = (S1 + S2)/n₂"),
        ("P2j*", "P2j* = E[Q′_j(·; c_j)]"),
        ("normal variance*", "normal variance* = E[s_j(c_j)²]"),
        ("L*", "L* = R1 + n₂/2 log("),
        ("lemma  3.4", "Lemma 3.4.  "),
    ],
)
def test_derive_prints_every_item_alone(name: str, start: str) -> None:
    printed = run("derive", "--node", name)
    assert printed.stdout.startswith(start), printed.output
    assert json.loads(run("derive", "--node", name, "--format", "json").stdout)["name"].lower() == " ".join(
        name.lower().split()
    )


def test_derive_prints_the_proof_line_by_line() -> None:
    whole = run("derive", "--steps").stdout
    assert whole == f"{et.derive().proof_text()}\n"
    assert "\n  1  kl_of_products:  KL(prod_j Q_j || prod_j P_j) -> sum_j KL(Q_j || P_j)\n" in whole
    lines = run("derive", "--steps", "--node", "T2").stdout.splitlines()
    assert lines[0].startswith("S2 = E[|f − μ₂ − Σ_j s_j(c_j) b_j|²]")
    assert lines[1] == "  1  expand_squared_norm:  |a + v|^2 -> |a|^2 + 2 <a, v> + |v|^2"
    assert lines[-1].endswith("− 2 Σ_j E[⟨f − μ₂, b_j⟩ s_j(c_j)]")
    one_line_error(run("derive", "--steps", "--node", "B2*"), 1, "B2. is not made by steps of its own")
    one_line_error(run("derive", "--steps", "--format", "dot"), 1, "no lines of a proof")


def test_derive_writes_the_page() -> None:
    assert run("derive", "--format", "html").stdout == et.derive().proof_html()
    one_line_error(run("derive", "--node", "T2", "--format", "html"), 1, "draws the whole tree")


def test_derive_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    from elbotree.derivation import lemmas
    from elbotree.derivation.verify import Report

    monkeypatch.setattr(lemmas, "verify_all", lambda: Report(("Lemma 2.1, one", "L = R1 + R2 + R3")))
    assert run("derive", "--verify").stdout.startswith("2 identities hold exactly:\n  Lemma 2.1")
    one_line_error(run("derive", "--verify", "--node", "T2"), 1, "--verify checks the whole derivation")


def test_derive_as_json() -> None:
    whole = json.loads(run("derive", "--format", "json").stdout)
    assert [node["name"] for node in whole["nodes"]] == list(NAMES)
    assert json.loads(run("derive", "--node", "S2", "--format", "json").stdout)["children"] == ["T1", "T2", "T3"]


def test_derive_refuses_an_unknown_node_and_a_picture_of_one() -> None:
    one_line_error(run("derive", "--node", "T4"), 1, "no 'T4' in the derivation; there are L, R1")
    one_line_error(run("derive", "--node", "T2", "--format", "dot"), 1, "draws the whole tree")


def test_kernels_to_a_file_and_to_standard_output(tmp_path: Path) -> None:
    target = tmp_path / "relu_kernels.py"
    result = run("kernels", "--psi", "relu", "--family", "bernoulli,normal", "--out", target)
    assert (result.exit_code, result.stdout) == (0, "")
    repeated = run("kernels", "--psi", "relu", "--family", "normal", "--family", "bernoulli")
    assert repeated.stdout == target.read_text()
    assert "sympy" not in [
        line.split()[1] for line in target.read_text().splitlines() if line.startswith(("import", "from"))
    ]


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["--psi", "__import__('os')"], "psi"),
        (["--psi", "rellu"], "relu"),
        (["--family", "bernuolli"], "bernoulli"),
        (["--out", "/nowhere/kernels.py"], "/nowhere/kernels.py"),
    ],
)
def test_kernels_refuses_in_one_line(arguments: list[str], pattern: str) -> None:
    one_line_error(run("kernels", *arguments), 1, re.escape(pattern))


def test_evaluate_prints_json_alone(problem_file: Path) -> None:
    result = run("evaluate", problem_file, "--tol", "1e-7", "--format", "json")
    assert result.stderr == ""
    printed = json.loads(result.stdout)
    assert list(printed) == ["terms", "tol", "method", "seconds"]
    assert list(printed["terms"]) == list(NAMES)
    assert all(set(term) == {"value", "error"} for term in printed["terms"].values())
    assert (printed["tol"], printed["method"]) == (1e-7, "spectral")
    known = et.evaluate(et.Problem.load(problem_file), tol=1e-7)
    assert printed["terms"]["L"]["value"] == known["L"].value


def test_evaluate_draws_the_tree_without_colour_when_piped(problem_file: Path) -> None:
    result = run("evaluate", problem_file, "--tol", "1e-4", "--check-samples", "1000")
    assert "\x1b" not in result.stdout
    assert "└─ U3" in result.stdout
    assert "checked with 1000 samples" in result.stdout


def test_a_table_for_terminals_holds_the_same_numbers(problem_file: Path) -> None:
    from rich.console import Console

    from elbotree.verbs.screen import rich_table

    values = et.evaluate(et.Problem.load(problem_file), tol=1e-4)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rich_table(values))
    drawn = console.export_text()
    assert all(f"{term.value:.10g}" in drawn for term in values.values())


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda form: form["layer"].update(A=[[1.0, 0.2], [0.0]]), "layer.A"),
        (lambda form: form["layer"].update(w=[1.0]), r"layer\.w.* has shape \(1,\)"),
        (lambda form: form["layer"].update(psi="rellu"), "relu"),
        (lambda form: form["layer"].update(weights=[1.0]), "weights"),
        (lambda form: form["model"]["priors"].reverse(), r"encoder\[0\].*infinite KL"),
        (
            lambda form: form["input"]["priors"].__setitem__(
                0, {"kind": "discrete", "points": [0, 1], "masses": [0.5, 0.4]}
            ),
            "sum",
        ),
        (lambda form: form["encoder"][1].update(family="normla"), "normal"),
        (lambda form: form.pop("encoder"), "encoder"),
    ],
)
def test_evaluate_names_what_is_wrong_with_a_problem(
    form: dict[str, Any], tmp_path: Path, change: Any, pattern: str
) -> None:
    change(form)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(form))
    one_line_error(run("evaluate", path), 1, rf"bad\.json.*{pattern}")


@pytest.mark.parametrize(
    ("content", "pattern"),
    [(b"", "empty"), (b"\x00\x01", "binary"), (b"{", "not JSON"), (b'{"format": NaN}', "NaN"), (None, "no such file")],
)
def test_evaluate_names_what_is_wrong_with_a_file(tmp_path: Path, content: bytes | None, pattern: str) -> None:
    path = tmp_path / "p.json"
    if content is not None:
        path.write_bytes(content)
    one_line_error(run("evaluate", path), 1, pattern)


def test_a_tolerance_out_of_reach_is_status_3(problem_file: Path) -> None:
    one_line_error(
        run("evaluate", problem_file, "--method", "grid", "--eps", "0.3", "--tol", "1e-9"), 3, "at tol = 1e-09"
    )


def test_wrong_usage_is_status_2(problem_file: Path) -> None:
    assert run("evaluate").exit_code == 2
    assert run("evaluate", problem_file, "--tol", "small").exit_code == 2
    assert run("nonsense").exit_code == 2


def test_no_traceback_and_a_status_from_a_real_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "elbotree", "evaluate", str(tmp_path / "missing.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_fit_needs_layer_and_input_alone_and_saves_what_report_and_sample_read(
    form: dict[str, Any], tmp_path: Path
) -> None:
    form["layer"] = {"A": [[1.0], [0.0]], "w": [0.0, 1.0], "u": [1.0, 0.0], "psi": "tanh"}
    form["input"] = {"B": [[2.0]], "noise_std": 0.6, "priors": [{"kind": "bernoulli", "p": 0.4}]}
    del form["model"], form["encoder"]
    path, folder = tmp_path / "p.json", tmp_path / "fitted"
    path.write_text(json.dumps(form))
    options = ("--features", "1", "--family", "bernoulli", "--tol", "1e-2", "--format", "json")
    result = run("fit", path, *options, "--out", folder)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["terms"]["L"] == et.load(folder).values.to_dict()["terms"]["L"]
    rows = np.array(
        [[float(x) for x in line.split(",")] for line in run("sample", folder, "-n", "7").stdout.splitlines()]
    )
    assert rows.shape == (7, 2)
    assert np.array_equal(rows, et.load(folder).model.sample(7, np.random.default_rng(0)))
    assert run("report", folder, "--tol", "1e-2").exit_code == 0
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_verbose_tells_what_training_does_on_standard_error(problem_file: Path) -> None:
    command = ["fit", str(problem_file), "--features", "2", "--starts", "1", "--iterations", "3", "--tol", "1e-2"]
    command += ["--format", "json"]
    program = [sys.executable, "-m", "elbotree"]
    quiet = subprocess.run([*program, *command], capture_output=True, text=True, check=True)
    loud = subprocess.run([*program, "-v", *command], capture_output=True, text=True, check=True)
    assert "elbotree.runtime." not in quiet.stderr
    assert "elbotree.runtime.training: " in loud.stderr
    json.loads(loud.stdout)


def test_fit_names_what_is_wrong_with_a_layer(form: dict[str, Any], tmp_path: Path) -> None:
    del form["model"], form["encoder"]
    form["layer"]["w"] = [1.0, 2.0, 3.0]
    path = tmp_path / "p.json"
    path.write_text(json.dumps(form))
    one_line_error(run("fit", path), 1, r"p\.json: `layer\.w` has shape \(3,\)")


def test_sample_draws_the_input_or_the_output_of_a_problem(problem_file: Path) -> None:
    problem = et.Problem.load(problem_file)
    rows = problem.input.sample(3, np.random.default_rng(5))
    for which, expected in (("input", rows), ("output", problem.layer(rows))):
        text = run("sample", problem_file, "-n", "3", "--seed", "5", "--of", which).stdout
        assert np.array_equal(np.array([line.split(",") for line in text.splitlines()], dtype=float), expected)


def test_doctor_reports_and_the_self_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("doctor", "--format", "json")
    assert result.exit_code == 0
    findings = json.loads(result.stdout)
    assert findings["self-check"]["passed"] is True
    assert findings["packages"]["elbotree"] == et.__version__
    from elbotree import diagnosis

    wrong = diagnosis.references()[2:3]
    wrong[0]["terms"]["T3"] += 1e-4
    monkeypatch.setattr(diagnosis, "references", lambda: wrong)
    failed = run("doctor")
    assert failed.exit_code == 1
    assert "FAILED" in failed.stdout


def test_the_self_check_compares_with_what_the_oracle_says_today() -> None:
    from elbotree import diagnosis
    from tests.reference.oracle import reference_terms
    from tests.reference.problems import problem
    from tests.reference.selfcheck import CHOSEN

    stored = {part["name"]: part for part in diagnosis.references()}
    assert tuple(stored) == CHOSEN
    for name, part in stored.items():
        assert part["problem"] == problem(name)
    assert stored["relu"]["terms"] == pytest.approx(reference_terms(problem("relu")), rel=1e-10, abs=1e-12)


def test_tail_of_a_gaussian_output_is_the_normal_tail(tmp_path: Path) -> None:
    path = tmp_path / "gaussian.json"
    layer = et.Layer(np.eye(2), [0.0, 0.0], [1.0, 0.0], "relu")
    p1 = et.FeatureModel(np.eye(2), [et.Normal(0.0, 1.0)] * 2, 0.5)
    model = et.FeatureModel(np.ones((2, 1)), [et.Normal(0.0, 1.0)], 1.0)
    et.Problem(layer, p1, model, et.Encoder([et.Posterior("normal", np.ones((1, 2)), std=1.0)])).save(path)
    result = run("tail", path, "--row", "1,1", "--above", "3,30", "--format", "json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["tails"]
    np.testing.assert_allclose(found["log_p"], log_ndtr(-np.array([3.0, 30.0]) / np.sqrt(2.5)), rtol=1e-10)


def test_a_network_is_fitted_interrupted_and_asked_for_a_tail(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_network(place / "network.onnx")
    monkeypatch.chdir(place)
    arguments = ("--input", "problem.json", "--check-samples", "2000", "--checkpoint", "state", "--out", "modelled")
    made = json.loads(run("fit", "network.onnx", *arguments, "--format", "json").stdout)
    assert [row["width"] for row in made["layers"]] == [layer.n2 for layer in et.compile_network("network.onnx")]
    assert all(0 <= row["drift"]["covariance"] < 0.5 for row in made["layers"])
    one_line_error(run("fit", "network.onnx", *arguments), 1, "holds a checkpoint; go on from it with resume=True")
    again = json.loads(run("fit", "network.onnx", *arguments, "--resume", "--format", "json").stdout)
    assert again == made
    found = json.loads(
        run("tail", "modelled", "--row", "1,0", "--above", "2,4", "--check-samples", "5000", "--format", "json").stdout
    )
    assert found["drift"] == made["layers"][-1]["drift"]
    chain = et.load("modelled")
    rows = chain.p1.sample(200_000, np.random.default_rng(0))
    for layer in chain.layers:
        rows = layer(rows)
    for x, check in zip((2, 4), found["checks"], strict=True):
        assert abs(check["value"] - np.mean(rows[:, 0] > x)) < 5 * (check["std_error"] + 1 / np.sqrt(len(rows)))
    plain = run("tail", "modelled", "--row", "1,0", "--above", "2", "--format", "plain").stdout
    assert "the last model: mean off by" in plain


@pytest.mark.parametrize("checkpoint", [False, True])
def test_an_interruption_has_the_status_of_shells_and_says_how_to_go_on(
    problem_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: bool
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(et, "fit", interrupted)
    state = tmp_path / "state"
    result = run("fit", problem_file, *(("--checkpoint", state) if checkpoint else ()))
    assert result.exit_code == 130
    assert result.stdout == ""
    told = [f"interrupted after iteration 0; go on with --checkpoint {state} --resume"] if checkpoint else []
    assert result.stderr.splitlines() == [*told, "interrupted"]


def test_a_network_needs_an_input(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_network(place / "network.onnx")
    monkeypatch.chdir(place)
    result = run("fit", "network.onnx")
    assert result.exit_code == 2
    assert "a network needs --input" in result.output
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"inputs": {}}')
    one_line_error(run("fit", "network.onnx", "--input", wrong), 1, "it must be an object with the key `input`")
    wrong.write_text('{"input": {"B": [[1.0], [0.0]], "priors": [{"kind": "bernouli", "p": 0.3}], "noise_std": 0.1}}')
    one_line_error(run("fit", "network.onnx", "--input", wrong), 1, "bernouli")


def test_a_problem_may_come_through_a_pipe(problem_file: Path) -> None:
    def piped(text: str, *arguments: str) -> Result:
        return CliRunner().invoke(main, list(arguments), input=text)

    text = problem_file.read_text()
    given = json.loads(piped(text, "evaluate", "-", "--tol", "1e-4", "--format", "json").stdout)["terms"]
    known = json.loads(run("evaluate", problem_file, "--tol", "1e-4", "--format", "json").stdout)["terms"]
    assert given == known
    assert len(piped(text, "sample", "-", "-n", "3").stdout.splitlines()) == 3
    few = ["--features", "1", "--family", "bernoulli", "--tol", "0.1", "--iterations", "1", "--format", "json"]
    fitted = [
        json.loads(done.stdout)["terms"] for done in (piped(text, "fit", "-", *few), run("fit", problem_file, *few))
    ]
    assert fitted[0] == fitted[1]
    one_line_error(piped("{", "evaluate", "-"), 1, "standard input.*not JSON")
    one_line_error(piped(text.replace('"relu"', '"rellu"'), "evaluate", "-"), 1, "standard input: .*relu")


def test_laws_need_no_model(problem_file: Path, tmp_path: Path) -> None:
    whole = json.loads(problem_file.read_text())
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps({key: whole[key] for key in ("format", "layer", "input")}))
    asked = ["--row", "1,0", "--above", "2,9", "--format", "json"]
    assert run("tail", bare, *asked).stdout == run("tail", problem_file, *asked).stdout
    assert run("sample", bare, "--of", "input").stdout == run("sample", problem_file, "--of", "input").stdout
    one_line_error(run("tail", bare, "--of", "model", *asked), 1, "lacks the key 'model'; ask for --of output")
    one_line_error(run("evaluate", bare), 1, "lacks the key 'model'")
    bare.write_text(json.dumps({key: whole[key] for key in ("format", "layer", "input")} | {"model": None}))
    one_line_error(run("tail", bare, *asked), 1, "lacks the key 'encoder'")


def test_folders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    one_line_error(run("sample", tmp_path), 1, "is a folder without cfg.json")
    layer = et.Layer(np.eye(1), [1.0], [1.0], "tanh")
    et.fit_network([layer], et.FeatureModel([[1.0]], [et.Normal(0.0, 1.0)], 0.5)).save(tmp_path / "chain")
    one_line_error(run("evaluate", tmp_path / "chain"), 1, "is the folder of a chain")


def test_tail_counts_the_numbers_of_a_row(problem_file: Path) -> None:
    one_line_error(
        run("tail", problem_file, "--row", "1,0,0", "--above", "3"), 1, "--row has 3 numbers; .* has 2 coordinates"
    )


def test_tail_names_the_option_that_holds_no_number(problem_file: Path) -> None:
    one_line_error(run("tail", problem_file, "--row", "1,x", "--above", "3"), 1, "--row holds 'x'")


def test_compile_refuses_what_is_no_network(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"no network")
    one_line_error(run("compile", path), 1, "onnx")
