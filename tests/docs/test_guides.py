"""The guides in docs/: what they say is right, and their commands are known."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from gft_edge.bundle.manifest import EngineSettings
from gft_edge.cli import main
from gft_edge.errors import UsageError
from gft_edge.nvidia.cuda import Gpu
from gft_edge.nvidia.engines import Host, engine_for, engine_of, fingerprint
from gft_edge.nvidia.library import Library
from tests.support.guides import (
    DEVICES,
    JETSON,
    LANGUAGES,
    NEEDS_MORE,
    PI,
    RUN,
    Guide,
    is_on_device,
    is_run,
)
from tests.support.paths import ROOT

GUIDES = pytest.mark.parametrize("guide", [JETSON, PI, DEVICES], ids=lambda guide: guide.name)


@GUIDES
def test_every_block_says_where_it_belongs_and_is_shell(guide: Guide) -> None:
    assert {place for place, _ in guide.blocks("sh")} <= {"workstation", "board"}
    for _, text in guide.blocks("sh"):
        done = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), text
        assert "\\\n" not in text  # one command a line
    assert len(re.findall("^```", guide.text, flags=re.MULTILINE)) == 2 * sum(
        len(guide.blocks(language)) for language in LANGUAGES
    )


@GUIDES
def test_every_command_is_run_or_parsed_or_listed_as_one_that_needs_more(guide: Guide) -> None:
    found = [(where, command) for where in RUN for command in guide.commands(where)]
    rest = [
        command
        for where, command in found
        if not is_run(guide, where, command) and not is_on_device(command)
    ]
    assert sorted(rest) == sorted(NEEDS_MORE[guide])


@GUIDES
def test_a_page_begins_with_the_commands_that_do_it(guide: Guide) -> None:
    title, block = guide.text.split("\n\n")[:2]
    assert title.startswith("# ")
    assert block.startswith("```sh workstation\n")
    assert all(line.startswith("gft-edge ") for line in block.splitlines()[1:-1])


@GUIDES
def test_every_gft_edge_command_in_a_sentence_has_the_options_it_is_given(guide: Guide) -> None:
    """Of those in blocks the test of the README's commands asks the same."""
    prose = re.sub(r"^```.*?^```$", "", guide.text, flags=re.MULTILINE | re.DOTALL)
    for line in re.findall(r"`gft-edge ([a-z]+ [^`]+)`", prose):
        name, *words = shlex.split(line)
        known = {flag for each in main.commands[name].params for flag in each.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


@GUIDES
def test_ssh_takes_the_configuration_that_a_page_shows(guide: Guide, tmp_path: Path) -> None:
    if shutil.which("ssh") is None:
        pytest.skip("no ssh here: apt install openssh-client")
    ((_, text),) = guide.blocks("sshconfig")
    (tmp_path / "config").write_text(text)
    host = text.split()[1]
    done = subprocess.run(
        ["ssh", "-G", "-F", str(tmp_path / "config"), host],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert told["hostname"] != host
    assert {word for command in guide.commands("workstation") for word in command.split()} >= {host}


@GUIDES
def test_the_links_to_other_pages_of_the_project_lead_somewhere(guide: Guide) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", guide.text):
        file, _, heading = target.partition("#")
        path = ROOT / "docs" / (file or guide.name)
        headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert heading in {
            "",
            *(re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings),
        }


@GUIDES
def test_the_readme_names_the_guide(guide: Guide) -> None:
    assert f"(docs/{guide.name})" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_the_guide_says_after_an_update_is_what_is_said() -> None:
    """An Orin went from JetPack 6.2 to 7.2."""
    orin = Gpu("Orin", "8.7", integrated=True, multiprocessors=8)
    before = Host("linux-aarch64", orin, "12.6", None, "R36.4.3")
    after = Host("linux-aarch64", orin, "13.2", None, "R39.2.0")
    old, new = (
        Library(SimpleNamespace(__version__=version), "tensorrt")
        for version in ("10.3.0", "10.16.1.11")
    )
    settings = EngineSettings("tensorrt")
    path = f"engines/{fingerprint(settings, old, before)}/model.engine"
    engine = engine_of(
        old, before, settings, path=path, sha256="", graph_sha256="graph", outputs=("logits",),
        flags=("STRONGLY_TYPED",), timing_cache=None, build_seconds=60,
    )  # fmt: skip
    with pytest.raises(UsageError) as raised:
        engine_for(Path("bundles/grocery-trt"), [engine], "graph", ("logits",), [new], after)
    ((_, quoted),) = JETSON.blocks("text")
    assert str(raised.value) == quoted.strip()
