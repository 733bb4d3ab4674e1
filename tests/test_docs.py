"""The documentation fits the code: links, commands, options, settings, the list of files, and the benchmark chart."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from bench.chart import read_figures

from ddp_cli.cli import app
from ddp_cli.commands.sweep import parse_sweep
from ddp_cli.errors import DdpError
from ddp_cli.policy_config import PolicyConfig
from ddp_cli.presets import DERIVED
from ddp_cli.train_config import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "sample_data" / "README.md"]
MAX_README_WORDS = 1200
OTHER_OPTIONS = {
    "--nproc-per-node", "--index-url", "--force-reinstall", "--threads",
    "--version", "--help", "--install-completion",
}  # fmt: skip
"""Options of torchrun, pip and the benchmarks, and those of `ddp` itself."""

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
UsageError: Any = typer.BadParameter.__base__

page_parameter = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


# -- parsing Markdown ----------------------------------------------------------------------------


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    return re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(text))


def links(text: str) -> list[str]:
    """Targets of links and images, in Markdown and in HTML."""
    without_code = re.sub(r"`[^`\n]+`", "", prose(text))
    return [*re.findall(r"\]\(([^)\s]+)\)", without_code), *re.findall(r'(?:src|href)="([^"]+)"', without_code)]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `ddp` command in the code blocks of `text`, also of those that torchrun starts."""
    for block in code_blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.removeprefix("$ ").split(" && "):
                words = shlex.split(part, comments=True) if re.match(r"ddp |torchrun ", part) else []
                if words[:1] == ["ddp"]:
                    yield words[1:]
                elif "ddp_cli.cli" in words:
                    yield words[words.index("ddp_cli.cli") + 1 :]


# -- checking commands ---------------------------------------------------------------------------


def option_names(command: str) -> set[str]:
    return {name for parameter in COMMANDS[command].params for name in (*parameter.opts, *parameter.secondary_opts)}


def fault(words: list[str]) -> str:
    """What is wrong with the command `ddp WORDS`, empty if nothing is. The command is parsed, not executed."""
    name, *arguments = words
    if name.startswith("--"):
        return "" if name in OTHER_OPTIONS else f"unknown option {name}"
    if name not in COMMANDS:
        return f"unknown command {name}"
    try:
        context = COMMANDS[name].make_context(name, list(arguments))
        parse_sweep(context.params.get("sweeps") or [])
    except UsageError as e:
        return e.format_message()
    except DdpError as e:
        return str(e)
    valid = {*TrainConfig.model_fields, *PolicyConfig.model_fields, *DERIVED}
    unknown = [pair for pair in context.params.get("settings") or [] if pair.partition("=")[0] not in valid]
    return f"unknown setting {unknown[0]}" if unknown else ""


def span_fault(span: str) -> str:
    """As `fault`, for a code span; `ddp eval` and `ddp eval --last` only name a command or its options."""
    words = shlex.split(span.replace("...", ""))[1:]
    named_only = "..." in span or all(word.startswith("--") for word in words[1:])
    if not named_only or words[0] not in COMMANDS:
        return fault(words)
    unknown = [w for w in words[1:] if w.startswith("--") and w.partition("=")[0] not in option_names(words[0])]
    return f"unknown option {unknown[0]}" if unknown else ""


# -- tests ---------------------------------------------------------------------------------------


@page_parameter
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in links(page.read_text()):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert not broken


@page_parameter
def test_commands_parse(page: Path) -> None:
    text = page.read_text()
    faults = {" ".join(words): fault(words) for words in commands(text)}
    faults |= {span: span_fault(span) for span in code_spans(text) if span.startswith("ddp ")}
    assert {command: why for command, why in faults.items() if why} == {}


@page_parameter
def test_options_and_settings_exist(page: Path) -> None:
    """Those in code spans that begin with an option, such as `--sampler` or `--set lr=1e-4`."""
    known = OTHER_OPTIONS.union(*map(option_names, COMMANDS))
    settings = {*TrainConfig.model_fields, *PolicyConfig.model_fields, *DERIVED}
    unknown = []
    for span in code_spans(page.read_text()):
        option, _, value = span.partition(" ")
        if option.startswith("--") and option not in known:
            unknown.append(span)
        if option == "--set" and value and value.partition("=")[0] not in {*settings, "key"}:
            unknown.append(span)
    assert not unknown


@pytest.mark.parametrize(
    "command",
    ["convert", "convert a --preview x.png", "trian", "eval --sampler dmp", "eval --sweep steps=1", "train --steps x",
     "train --set n_layers=2", "train --plot runs/a", "rollout --grid"],
)  # fmt: skip
def test_wrong_commands_are_noticed(command: str) -> None:
    assert fault(command.split())


def test_every_command_is_documented() -> None:
    documented = {words[0] for page in PAGES for words in commands(page.read_text())}
    assert documented >= COMMANDS.keys()


def test_every_option_is_documented() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    long_options = {name for command in COMMANDS for name in option_names(command) if name.startswith("--")}
    assert {name for name in long_options if not re.search(rf"{name}\b", text)} - {"--help"} == set()


def test_every_setting_is_documented() -> None:
    """Settings that have an option of their own count by that."""
    spans = " ".join(code_spans((ROOT / "docs" / "training.md").read_text()))
    by_option = {"policy", "preset", "task", "obs", "actions"}
    fields = {*TrainConfig.model_fields, *PolicyConfig.model_fields} - by_option
    assert {name for name in fields if not re.search(rf"\b{name.replace('_', '[_-]')}\b", spans)} == set()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= MAX_README_WORDS


def test_architecture_names_every_file_once() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    listed = re.findall(r"^\| `((?:ddp_cli|tests)/[\w/.]+)` \|", text, re.MULTILINE)
    packages = [p for p in (ROOT / "ddp_cli").rglob("*.py") if p.name != "__init__.py" or p.parent.name == "ddp_cli"]
    files = {str(p.relative_to(ROOT)) for p in [*packages, *(ROOT / "tests" / "bench").glob("*.py")]}
    assert sorted(path for path in listed if not path.endswith("/")) == sorted(files)
    packages = {f"ddp_cli/{p.name}/" for p in (ROOT / "ddp_cli").iterdir() if (p / "__init__.py").exists()}
    assert {path for path in listed if path.startswith("ddp_cli/") and path.endswith("/")} == packages


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_every_page_is_linked_from_the_readme(page: Path) -> None:
    targets = {link.partition("#")[0] for link in links((ROOT / "README.md").read_text())}
    assert f"docs/{page.name}" in targets


@page_parameter
def test_python_examples_fit_the_code(page: Path) -> None:
    """They may use names that they do not define; what they import exists, and takes the keywords that they give."""
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        nodes = list(ast.walk(ast.parse(block.replace(", ...}", "}"))))
        names: dict[str, Any] = {}
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom) and "ddp_cli" in ast.unparse(node):
                exec(compile(ast.Module([node], []), str(page), "exec"), names)
        for call in (node for node in nodes if isinstance(node, ast.Call)):
            function = ast.unparse(call.func)
            if function.partition(".")[0] in names:
                parameters = inspect.signature(eval(function, names)).parameters
                assert {keyword.arg for keyword in call.keywords} <= parameters.keys(), function


def test_the_chart_shows_the_figures_of_the_benchmarks() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    for figure in read_figures():
        assert figure.baseline in text
        assert figure.ddp in text
        assert (ROOT / "tests" / "bench" / figure.script).is_file()
    assert (ROOT / "docs" / "images" / "benchmarks.png").stat().st_size < 100_000
