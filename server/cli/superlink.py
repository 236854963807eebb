"""`lamella superlink`: the keys that a SuperLink and its SuperNodes need."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.console import console, show_json, words_aside
from server.cli.rollout_options import AsJson
from server.errors import ConfigurationError
from server.files import SECRET_MODE, make_folder, write_durably

if TYPE_CHECKING:
    from collections.abc import Mapping

app = typer.Typer(no_args_is_help=True, help="Keys and certificates for a Flower SuperLink of your own.")

_README = """\
# Keys of a SuperLink, made by `lamella superlink keys`

Everything here is secret except ca.crt, HOST.crt and *.pub. Nothing is encrypted: keep this folder off shared disks.

| file | goes to |
|---|---|
| ca.crt | every machine: `--ssl-ca-certfile` of the SuperLink, `--root-certificates` of the `lamella` commands |
| ca.key | nowhere. It signs server certificates; keep it offline. Who has it can pretend to be the SuperLink |
| HOST.crt, HOST.key | that server alone: `--ssl-certfile` and `--ssl-keyfile` of the SuperLink, or the gateway |
| node-N | one device alone: `lamella-device train --private-key` |
| node-N.pub | the operator: `flwr supernode register node-N.pub`, once, on the SuperLink's private network |

Server certificates of this folder: {hosts}. They hold for {days} days; the authority holds for ten years.
"""


@app.command()
def keys(
    out: Annotated[Path, typer.Option(help="Folder to make; must not hold keys already.", file_okay=False)],
    host: Annotated[
        list[str],
        typer.Option(help="Name or IP address of the server, as devices dial it; repeatable, each gets its own key."),
    ],
    nodes: Annotated[int, typer.Option(help="How many SuperNode key pairs.", min=0, max=10_000)] = 2,
    days: Annotated[int, typer.Option(help="Days that the server certificates hold.", min=1, max=3650)] = 825,
    as_json: AsJson = False,
) -> None:
    """Make a certificate authority, a certificate for each server, and key pairs for SuperNodes."""
    words_aside(as_json)
    from server.certificates import Authority, node_pair

    authority = Authority.make()
    pairs = {"ca": (authority.pair(), ".key", ".crt")}
    pairs |= {name: (authority.server_pair(name, days=days), ".key", ".crt") for name in host}
    pairs |= {f"node-{n}": (node_pair(f"lamella-node-{n}"), "", ".pub") for n in range(1, nodes + 1)}
    files: dict[str, tuple[bytes, int]] = {}
    for name, (pair, private, public) in pairs.items():
        files[name + private] = (pair.private, SECRET_MODE)
        files[name + public] = (pair.public, 0o644)
    files["README.md"] = (_README.format(hosts=", ".join(host), days=days).encode(), 0o644)
    _write_new(out, files)
    console.print(f"{out}: an authority, {len(host)} server certificates ({', '.join(host)}), {nodes} node key pairs")
    console.print(f"What goes where: {out / 'README.md'}")
    if as_json:
        show_json({"folder": str(out), "files": sorted(files), "hosts": host, "days": days})


@app.command()
def node_key(
    out: Annotated[Path, typer.Argument(help="File of the private key; the public key goes beside it, as OUT.pub.")],
    as_json: AsJson = False,
) -> None:
    """Make the key pair of one more SuperNode."""
    words_aside(as_json)
    from server.certificates import node_pair

    pair = node_pair(f"lamella-{out.name}")
    _write_new(out.parent, {out.name: (pair.private, SECRET_MODE), f"{out.name}.pub": (pair.public, 0o644)})
    console.print(f"{out} is the device's alone; register it with: flwr supernode register {out}.pub")
    if as_json:
        show_json({"private_key": str(out), "public_key": f"{out}.pub"})


def _write_new(folder: Path, files: Mapping[str, tuple[bytes, int]]) -> None:
    """Write files that are not there yet; none is written when one of them is."""
    if taken := [name for name in files if (folder / name).exists()]:
        raise ConfigurationError(
            f"{folder} holds {taken[0]} already; keys in use are never overwritten. Choose another folder."
        )
    make_folder(folder, mode=0o700)
    if stat.S_IMODE(folder.stat().st_mode) & 0o022:
        raise ConfigurationError(f"Others may write into {folder}. Run: chmod go-w {folder}")
    for name, (content, mode) in files.items():
        write_durably(folder / name, content, mode=mode)
