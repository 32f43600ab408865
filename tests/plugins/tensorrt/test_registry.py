"""The plugin in TensorRT's own registry. Each scenario has a process: a crash fails its test."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.tensorrt.bad_fields import CASES, expected_message
from trt_resa.plugin_fields import FIELDS, PLUGIN_NAME, PLUGIN_NAMESPACE, PLUGIN_VERSION

pytest.importorskip("tensorrt_rtx", exc_type=ImportError)

ROOT = Path(__file__).resolve().parents[3]


def run(scenario: str, plugin_path: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.plugins.tensorrt.registry_scenarios"]
    done = subprocess.run(
        [*command, scenario, str(plugin_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


def test_found_by_name_version_and_namespace(plugin_path: Path) -> None:
    found = run("load", plugin_path)
    identity = (found["name"], found["version"], found["namespace"])
    assert identity == (PLUGIN_NAME, PLUGIN_VERSION, PLUGIN_NAMESPACE)
    assert found["created"]
    assert not found["after"]
    assert not found["mapped"], "the library stays in memory after it was unloaded"


def test_field_names_and_types_are_the_builders(plugin_path: Path) -> None:
    expected = [[field.name, field.kind] for field in FIELDS]
    assert run("load", plugin_path)["fields"] == expected


@pytest.fixture(scope="module")
def outcomes(plugin_path: Path) -> dict[str, Any]:
    result = run("bad_fields", plugin_path)
    assert result["good_after_bad"]
    return result["outcomes"]


@pytest.mark.parametrize("case", CASES)
def test_bad_fields_are_refused_with_a_reason(outcomes: dict[str, Any], case: str) -> None:
    outcome = outcomes[case]
    assert not outcome["made"]
    reasons = [message for message in outcome["errors"] if message.startswith("ReSAAttention: ")]
    assert len(reasons) == 1, outcome
    assert expected_message(case) in reasons[0]


def test_unload_and_reload(plugin_path: Path) -> None:
    result = run("reload", plugin_path)
    assert result["rounds"] == [[True, True, True, False, False]] * 3


def test_two_copies_of_the_library(plugin_path: Path) -> None:
    result = run("two_copies", plugin_path)
    assert any("exists already" in message for message in result["refusal"])
    assert result["usable"]
    assert result["still"]
    assert not result["after"]


def test_registers_itself_where_it_is_only_opened(plugin_path: Path) -> None:
    result = run("only_opened", plugin_path)
    assert result["rounds"] == [[True, True, False, False]] * 2
    assert not result["errors"]


def test_opened_and_then_loaded(plugin_path: Path) -> None:
    result = run("opened_then_loaded", plugin_path)
    assert result["before"]
    assert result["count"] == 1
    assert result["created"]
    assert not result["after"]
    assert not result["mapped"]


def test_process_may_end_with_it_registered(plugin_path: Path) -> None:
    assert run("left_open", plugin_path)["registered"]


def test_exports_and_dependencies(plugin_path: Path) -> None:
    """The two entry points alone leave the library, and it asks for no TensorRT and no CUDA."""
    nm, readelf = shutil.which("nm"), shutil.which("readelf")
    if nm is None or readelf is None:
        pytest.skip("nm and readelf are not installed")

    def output(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    symbols = output(nm, "--dynamic", "--defined-only", str(plugin_path)).splitlines()
    assert {line.split()[-1] for line in symbols} == {"getCreators", "setLoggerFinder"}
    needed = [
        line for line in output(readelf, "-d", str(plugin_path)).splitlines() if "NEED" in line
    ]
    assert needed
    assert not [line for line in needed if "nvinfer" in line or "cuda" in line]
