"""What is written for people is true: pages, links, commands in examples, and the packages' public names."""

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
from typer.main import get_command

from client_sdk.cli import app as device
from server.cli.main import app as operator
from server.config import Settings

TOP = Path(__file__).parents[2]
PACKAGES = ("server", "client_sdk", "model", "privacy", "delta_updates")
WRITTEN = [
    TOP / "README.md",
    *sorted((TOP / "docs").glob("*.md")),
    *sorted((TOP / ".github").glob("*.md")),
    *(TOP / room / "README.md" for room in (*PACKAGES, "docker")),
]
PROGRAMS = {"lamella": get_command(operator), "lamella-device": get_command(device)}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
# Written so that this file does not match itself.
OUT_OF_PLACE = re.compile(
    r"(?<![\w.])/[w]ork/|/tmp/[l]amella"
    r"|(py[p]i|python[h]osted|np[m]js|anacond[a])[.](org|com)|(ghc[r]|docke[r]|qua[y])[.]io|download[.]pytorch"
    r"|sub-?agen[t]|(coding|ai|software|chat) agen[t]|agen[t] session|helper sessio[n]|clau[d]e|anthropi[c]|copilo[t]",
    flags=re.IGNORECASE,
)


def generator(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", TOP / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return path.relative_to(TOP).as_posix()


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        # What is hidden is another name for what is shown.
        for part, child in command.commands.items():
            if not child.hidden:
                yield from commands(child, f"{name} {part}")
    else:
        yield name, command


ALL_COMMANDS = dict(pair for name, program in PROGRAMS.items() for pair in commands(program, name))


@pytest.mark.parametrize("name", ["make_commands", "make_rest"])
def test_a_made_page_is_what_its_script_makes(name: str) -> None:
    script = generator(name)
    assert read(script.PAGE) == script.page(), f"run: python docs/{name}.py"


def test_the_made_tables_are_what_their_script_makes() -> None:
    script = generator("make_tables")
    for name, page in script.TABLES.items():
        text = read(TOP / "docs" / page)
        assert f"<!-- table: {name}, written by docs/make_tables.py -->" in text
        assert text == script.filled(text), f"{page} is out of date; run: python docs/make_tables.py"


def test_every_command_and_option_is_documented() -> None:
    sections = dict(re.findall(r"^### (.+)\n((?:(?!^##).*\n?)*)", read(TOP / "docs/commands.md"), flags=re.MULTILINE))
    assert set(sections) == set(ALL_COMMANDS)
    for name, command in ALL_COMMANDS.items():
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert all(re.search(rf"\| `{option}[ `]", sections[name]) for option in parameter.opts), (
                    name,
                    parameter.opts,
                )
        rows = re.findall(r"^\| `.*", sections[name], flags=re.MULTILINE)
        assert len(rows) == len(command.params), name
        assert not [row for row in rows if re.search(r"\|\s*\|$", row)], f"{name} has an option without help"


def test_every_setting_is_documented() -> None:
    page = read(TOP / "docs/settings.md")
    for name, field in Settings.model_fields.items():
        assert f"| `LAMELLA_{name.upper()}` |" in page
        assert field.description, name


def test_every_variable_that_anything_reads_is_documented() -> None:
    page = read(TOP / "docs/settings.md")
    sources = [path for room in (*PACKAGES, "docker", "examples") for path in (TOP / room).rglob("*") if path.is_file()]
    text = "".join(read(path) for path in sources if path.suffix in {".py", ".sh", ".yaml", ""})
    found = set(re.findall(r"\bLAMELLA_[A-Z_]*[A-Z]\b", text))
    assert "LAMELLA_DEVICE_HOME" in found
    assert not [name for name in found if f"`{name}`" not in page]


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    text = FENCE.sub("", read(path))
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    for link in links:
        if not re.match(r"[a-z]+:|#", link):
            target = path.parent / link.partition("#")[0]
            assert target.exists(), link


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_every_command_in_an_example_exists_with_its_options(path: Path) -> None:
    text = read(path)
    inline = re.findall(r"`([^`]+)`", FENCE.sub("", text))
    lines = [line for _, block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    for line in (*lines, *(" ".join(code.split()) for code in inline)):
        for found in re.finditer(r"(?<![\w./-])(lamella(?:-device)?) (?=[a-z])([^|;&#`]*)", line):
            check_call([found[1], *shlex.split(found[2])])


def check_call(words: list[str]) -> None:
    """A call as it is typed: a path of commands, then only options that the last of them has."""
    command: click.Command = PROGRAMS[words[0]]
    for word in words[1:]:
        if not isinstance(command, click.Group):
            break
        assert word in command.commands, words
        command = command.commands[word]
    assert not isinstance(command, click.Group), words
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, words


def test_a_call_that_does_not_exist_would_be_noticed() -> None:
    check_call(["lamella", "runs", "list", "--json"])
    for wrong in ("runs lost", "runs", "runs list --yaml"):
        with pytest.raises(AssertionError):
            check_call(["lamella", *wrong.split()])


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_every_import_in_an_example_works(path: Path) -> None:
    for language, block in FENCE.findall(read(path)):
        if language == "python":
            for module, names in re.findall(r"^from (\S+) import (.+)$", block, flags=re.MULTILINE):
                loaded = importlib.import_module(module)
                assert [name for name in names.split(", ") if not hasattr(loaded, name)] == []


@pytest.mark.parametrize("name", PACKAGES)
def test_all_names_exactly_what_a_package_imports_for_others(name: str) -> None:
    package = importlib.import_module(name)
    body = ast.parse(read(TOP / name / "__init__.py")).body
    # A package that loads its parts when they are asked for names them for type checkers.
    body += [inner for node in body if isinstance(node, ast.If) for inner in node.body]
    imported = [
        alias.asname or alias.name
        for node in body
        if isinstance(node, ast.ImportFrom) and node.module not in {"__future__", "typing"}
        for alias in node.names
    ]
    assert package.__doc__
    assert len(set(package.__all__)) == len(package.__all__)
    assert set(package.__all__) == {public for public in imported if not public.startswith("_")}
    assert [public for public in package.__all__ if not hasattr(package, public)] == []


def test_nothing_of_where_it_was_made_is_in_the_repository() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=TOP, capture_output=True, check=True).stdout
    paths = [TOP / name for name in listed.decode().split("\0") if name]
    assert len(paths) > 100
    found = []
    for path in paths:
        if path.is_file():  # else removed, and not committed yet
            text = path.read_bytes().decode("utf-8", errors="replace")
            found += [f"{name_of(path)}: {match[0]}" for match in OUT_OF_PLACE.finditer(text)]
    assert found == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", ".mkdocs.yml", "-d", str(site)]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(list((TOP / "docs").glob("*.md")))
    for page in pages:
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"?([^\"\s>]+)", read(page))
        assert loaded
        assert not [url for url in loaded if url.startswith(("http:", "https:", "//"))], page


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", read(TOP / "docs/security.md"))
    assert len(named) > 30
    assert [f"{file}::{name}" for file, name in named if f"def {name}(" not in read(TOP / file)] == []
