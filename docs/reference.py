"The pages that the code itself writes: settings, commands, public names."

import ast
import configparser
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from layout import PROJECT, write


@dataclass(frozen=True)
class Key:
    "One setting."

    name: str
    default: str
    kind: str
    about: str


def settings_sections() -> dict[str, list[Key]]:
    "All settings by section: names and types from the code, defaults and descriptions from the file."
    from tradenb.core.settings import SECRETS, Settings

    file = PROJECT / "settings.ini"
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    parser.read(file, encoding="utf-8")
    said, sections = comments(file.read_text(encoding="utf-8")), {}
    for section, field in Settings.model_fields.items():
        keys = field.annotation.model_fields  # type: ignore[union-attr]
        sections[section] = [
            Key(
                key,
                "" if f"{section}.{key}" in SECRETS else parser[section].get(key, ""),
                "secret" if f"{section}.{key}" in SECRETS else kind_of(inner),
                said.get((section, key), "From the environment alone." if f"{section}.{key}" in SECRETS else ""),
            )
            for key, inner in keys.items()
        ]
    return sections


def comments(text: str) -> dict[tuple[str, str], str]:
    "(section, key) → the comment above it; keys that follow without one share it."
    found, section, above = {}, "", ""
    fresh = True
    for line in text.splitlines():
        if head := re.fullmatch(r"\[(\w+)\]", line.strip()):
            section, above = head[1], ""
        elif line.startswith("#"):
            above, fresh = (line[1:].strip() if fresh else f"{above} {line[1:].strip()}"), False
            continue
        elif "=" in line:
            found[section, line.partition("=")[0].strip()] = above
        fresh = True
    return found


def kind_of(field: Any) -> str:
    "A field's type and bounds in words."
    choices = re.findall(r"Literal\[([^\]]*)\]", str(field.annotation))
    name = (
        ", ".join(choices[0].replace("'", "").split(", ")) if choices else getattr(field.annotation, "__name__", "text")
    )
    words = {"str": "text", "int": "whole number", "float": "number", "Decimal": "amount", "bool": "true or false", "date": "date", "tuple": "list", "dict": "field=column pairs", "Path": "folder"}  # fmt: skip
    bounds = [f"{sign} {value}" for part in field.metadata for sign, attribute in (("≥", "ge"), (">", "gt"), ("≤", "le"), ("<", "lt")) if (value := getattr(part, attribute, None)) is not None]  # fmt: skip
    return " ".join([words.get(name, name), *bounds])


def settings_page() -> str:
    "The settings, section by section."
    parts = [
        "# Settings\n\nThree tiers, highest first: `--set section.key=value` on the command line, the environment (`TRADENB_SECTION__KEY`, a `.env` file too), and [settings.ini](../settings.ini). "
        "An unknown key, a bad value or an impossible combination is refused at start-up. Secrets come from the environment alone.\n"
    ]
    for section, keys in settings_sections().items():
        rows = [
            f"| `{k.name}` | {f'`{k.default}`' if k.default else ''} | {k.kind} | {k.about.replace('|', '&#124;')} |"
            for k in keys
        ]
        parts.append(
            f"## {section}\n\n| key | default | kind | what it does |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    return "\n".join(parts)


def command_page() -> str:
    "Every command with its options, as `--help` tells them."
    import typer
    from typer._click import Context
    from typer.cli import get_docs_for_click

    from tradenb.cli.main import app

    command = typer.main.get_command(app)
    page = get_docs_for_click(obj=command, ctx=Context(command), name="tradenb", title="The command line")
    return "\n".join(_whole(page.splitlines(), command))


def _whole(lines: list[str], tree: Any) -> Iterator[str]:
    "With plain headings, and whole sentences where the lists of commands have their first words."
    at = tree
    for line in lines:
        if head := re.fullmatch(r"(#+) `tradenb(.*)`", line):
            at = tree
            for name in head[2].split():
                at = at.commands[name]
            line = f"{head[1]} tradenb{head[2]}"
        listed = re.fullmatch(r"\* `([\w-]+)`: .*", line)
        if listed and listed[1] in getattr(at, "commands", {}):
            said = " ".join((at.commands[listed[1]].help or "").split())
            line = f"* `{listed[1]}`: {said.partition('. ')[0].removesuffix('.')}."
        yield line


def api_pages() -> list[str]:
    "A page for each module with its public names; their addresses."
    pages = []
    for path in sorted((PROJECT / "tradenb").rglob("*.py")):
        module = ast.parse(text := path.read_text(encoding="utf-8"))
        names = next((ast.literal_eval(n.value) for n in module.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"), [])  # fmt: skip
        if not names or "migrations" in path.parts:
            continue
        dotted = ".".join(path.relative_to(PROJECT).with_suffix("").parts)
        entries = [entry for node in module.body for entry in documented(node, text.splitlines(), names)]
        head = f"# {dotted}\n\n{ast.get_docstring(module) or ''}\n\n"
        write(f"reference/api/{dotted}.md", head + "\n\n".join(entries) + "\n")
        pages.append(dotted)
    return pages


def documented(node: ast.AST, lines: list[str], names: list[str]) -> Iterator[str]:
    "A definition as it is written, up to its body, and what it says of itself."
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name in names:
        yield f"## {node.name}\n\n```python\n{header(node, lines)}\n```\n\n{ast.get_docstring(node) or ''}"
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and not inner.name.startswith("_"):
                    yield f"```python\n{header(inner, lines)}\n```\n\n{ast.get_docstring(inner) or ''}"
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        said = [t.id for t in (target.elts if isinstance(target, ast.Tuple) else [target]) if isinstance(t, ast.Name)]
        if any(name in names for name in said) and node.end_lineno is not None and node.end_lineno - node.lineno < 12:
            yield f"## {', '.join(said)}\n\n```python\n" + "\n".join(lines[node.lineno - 1 : node.end_lineno]) + "\n```"


def header(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, lines: list[str]) -> str:
    "The lines of a definition without its body; of a class also its fields."
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    text = lines[first - 1 : node.body[0].lineno - 1] or [lines[first - 1]]
    if isinstance(node, ast.ClassDef):
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
        text = [*text, *(line for n in fields for line in lines[n.lineno - 1 : n.end_lineno])]
    indent = min(len(line) - len(line.lstrip()) for line in text if line.strip())
    return "\n".join(line[indent:] for line in text).rstrip()
