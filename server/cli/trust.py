"""`lamella trust`: who may sign what: make keys, look, replace, renew, and sign on the key holders' machines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.auditing import audited, note_done
from server.cli.console import Service, console, passphrase_of, problems, show_json, show_table, words_aside
from server.cli.rollout_options import AsJson
from server.config import Settings, load_settings
from server.errors import ConfigurationError, SigningError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.signing import Ceremonies, KeyFolder, Proposal

app = typer.Typer(
    no_args_is_help=True, help="Who may sign what: make keys, look, replace, renew, sign (also as `lamella keys`)."
)

_DEFAULT_BINS = 64
_UNENCRYPTED = (
    "[bold red]The offline keys are NOT encrypted:[/] who copies {folder} can ship a model to every device. Keep it on "
    "an encrypted disk that is not connected to the server."
)
_NOTHING_DUE: dict[str, object] = {"changes": [], "missing": [], "proposal": None, "published": {}}
Keys = Annotated[
    Path | None,
    typer.Option("--keys", help="Folder of offline keys (LAMELLA_OFFLINE_KEYS).", file_okay=False),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(help="File with their passphrase, mode 0600 (LAMELLA_PASSPHRASE_FILE); else it is asked for."),
]
Unencrypted = Annotated[
    bool, typer.Option("--unencrypted", help="Keep new offline keys without a passphrase. Dangerous.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="Only write the proposal, unsigned, into this folder; key holders sign copies of it."),
]


@app.command()
def init(
    keys: Keys = None,
    passphrase_file: PassphraseFile = None,
    unencrypted: Unencrypted = False,
    root_keys: Annotated[int, typer.Option(help="How many root keys to make.", min=1, max=16)] = 3,
    root_threshold: Annotated[int, typer.Option(help="How many of them must sign a new root.", min=1, max=16)] = 2,
    bins: Annotated[
        int, typer.Option(help="Over how many documents packages are spread; a power of two, fixed for good.")
    ] = _DEFAULT_BINS,
    as_json: AsJson = False,
) -> None:
    """Make every key of a new home, and its first signed metadata. Run once, before anything else."""
    from server.signing import Lifetimes, initialise

    words_aside(as_json)
    settings = _settings(keys, passphrase_file)
    offline = _keys(settings, is_new=True)
    if unencrypted:
        offline = _unencrypted(offline)
    initialise(
        settings.home,
        offline,
        lifetimes=Lifetimes.of(settings),
        root_keys=root_keys,
        root_threshold=root_threshold,
        bins=bins,
    )
    note_done(Service(settings).registry, "trust.init", str(settings.home))
    console.print(
        f"{offline.folder}: {root_keys} root keys ({root_threshold} must sign), a targets key and a releases key. Make "
        "a backup now; then give each root key its own holder; leave only the releases key where releases are made.",
        soft_wrap=True,
    )
    console.print(f"{settings.home / 'keys'}: the online keys, which the API signs with by itself.", soft_wrap=True)
    if as_json:
        show_json(
            {
                "offline_keys": str(offline.folder),
                "online_keys": str(settings.home / "keys"),
                "root_keys": root_keys,
                "root_threshold": root_threshold,
                "bins": bins,
            }
        )


@app.command()
def show(
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Show roles, keys and where they are, thresholds, expiry, and what to do next."""
    from server.signing import Lifetimes, overview

    settings = _settings(keys, None)
    found = overview(
        settings.home,
        searched=[settings.offline_keys],
        lifetimes=Lifetimes.of(settings),
        warn_days=settings.trust_warning_days,
    )
    if as_json:
        roles = [vars_of(role) | {"keys": dict(role.keys)} for role in found.roles]
        show_json(vars_of(found) | {"roles": roles})
        return
    rows = [
        (
            role.role + ("" if role.is_offline else " (online)"),
            f"v{role.version}",
            f"{role.expires:%Y-%m-%d} ({role.days_left} days)",
            f"{role.threshold} of {len(role.keys)}",
            "\n".join(f"{keyid[:8]} {'here' if path else 'elsewhere'}" for keyid, path in role.keys),
        )
        for role in found.roles
    ]
    show_table("Trust", ("role", "document", "expires", "must sign", "keys"), rows)
    console.print(f"Here is {settings.offline_keys}, and {settings.home / 'keys'} for online keys.", soft_wrap=True)
    console.print(f"{found.versions_signed} versions are signed, their packages in {found.bins} bins. What to do next:")
    for step in found.next_steps:
        console.print(f"- {step}", markup=False, soft_wrap=True)


@app.command()
def key(
    role: Annotated[str, typer.Argument(help="What it is for: root, targets or releases.")],
    keys: Keys = None,
    passphrase_file: PassphraseFile = None,
    unencrypted: Unencrypted = False,
    as_json: AsJson = False,
) -> None:
    """Make one offline key on its holder's own machine; only the .pub file leaves it, for `rotate --with`."""
    from server.signing import OFFLINE

    words_aside(as_json)
    if role not in OFFLINE:
        raise ConfigurationError(f"The roles with offline keys are {', '.join(OFFLINE)}; got {role!r}.")
    folder = _keys(_settings(keys, passphrase_file), is_new=True)
    if unencrypted:
        folder = _unencrypted(folder)
    public = folder.make(role)
    path = folder.folder / f"{role}-{public.keyid[:8]}.pub"
    console.print(f"{path}: give this to the operator, and nothing else.")
    if as_json:
        show_json({"role": role, "keyid": public.keyid, "public_key": str(path)})


@app.command()
def rotate(
    roles: Annotated[
        list[str], typer.Argument(metavar="ROLE...", help="root, targets, releases, deltas, snapshot, timestamp.")
    ],
    without: Annotated[
        list[str] | None, typer.Option(help="Key id to replace, or its beginning; repeatable. Unset: all of the role.")
    ] = None,
    with_: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Public key (.pub) that a holder made; repeatable. Unset: made here."),
    ] = None,
    threshold: Annotated[
        int | None, typer.Option(help="How many root keys must sign from now on.", min=1, max=16)
    ] = None,
    keys: Keys = None,
    passphrase_file: PassphraseFile = None,
    unencrypted: Unencrypted = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Replace keys. After a theft name snapshot and timestamp as well: it undoes what a thief has numbered ahead."""
    from server.signing.keys import read_public_key

    words_aside(as_json)
    settings = _settings(keys, passphrase_file)
    offline = _keys(settings)
    proposal = _ceremonies(settings).rotate(
        roles,
        offline=_unencrypted(offline) if unencrypted else offline,
        given=[read_public_key(path) for path in with_ or ()],
        without=without or (),
        threshold=threshold,
    )
    _finish(settings, proposal, out, offline, as_json=as_json)


@app.command()
def renew(
    documents: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DOCUMENT]...", help="root, targets, packages, releases. Unset: what is due."),
    ] = None,
    keys: Keys = None,
    passphrase_file: PassphraseFile = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Sign what only offline keys can sign again, with a later expiry. The server renews the rest by itself."""
    words_aside(as_json)
    settings = _settings(keys, passphrase_file)
    proposal = _ceremonies(settings).renew(documents or ())
    if proposal is None:
        console.print("Nothing has used up half of its lifetime. See: lamella trust show")
        if as_json:
            show_json(_NOTHING_DUE)
        return
    _finish(settings, proposal, out, _keys(settings), as_json=as_json)


@app.command()
def sign(
    folder: Annotated[Path, typer.Argument(help="A proposal's folder.", exists=True, file_okay=False)],
    keys: Keys = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Add the signatures of a key holder to a proposal; needs no server, only the folder and the keys."""
    from server.signing import Proposal

    words_aside(as_json)
    settings = _settings(keys, passphrase_file)
    proposal = Proposal.read(folder)
    for change in proposal.changes():
        console.print(f"- {change}", markup=False, soft_wrap=True)
    done = proposal.sign(_keys(settings))
    if not done:
        raise SigningError(
            f"{settings.offline_keys} has no key that counts for this proposal. Choose another with --keys."
        )
    proposal.update(folder)
    _tell(done)
    _tell_missing(proposal, folder)
    if as_json:
        show_json(_facts(proposal, folder=folder, published={}))


@app.command()
def publish(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Copies of one proposal.", exists=True, file_okay=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Install a proposal that enough key holders have signed; signatures of several copies are put together."""
    from server.signing import Proposal

    words_aside(as_json)
    proposal, *copies = [Proposal.read(folder) for folder in folders]
    for copy in copies:
        proposal.merge(copy)
    published = _install(load_settings(), proposal)
    if as_json:
        show_json(_facts(proposal, folder=None, published=published))


def vars_of(value: object) -> dict[str, object]:
    """The fields of a frozen dataclass."""
    return dict(vars(value))


def _settings(keys: Path | None, passphrase_file: Path | None) -> Settings:
    given = {"offline_keys": keys, "passphrase_file": passphrase_file}
    return load_settings(**{name: value for name, value in given.items() if value is not None})


def _keys(settings: Settings, *, is_new: bool = False) -> KeyFolder:
    from server.signing import KeyFolder

    return KeyFolder(settings.offline_keys, passphrase_of(settings, confirm=is_new))


def _unencrypted(folder: KeyFolder) -> KeyFolder:
    problems.print(_UNENCRYPTED.format(folder=folder.folder), soft_wrap=True)
    return replace(folder, passphrase=None)


def _ceremonies(settings: Settings) -> Ceremonies:
    from server.signing import Ceremonies, Lifetimes

    return Ceremonies(settings.home, lifetimes=Lifetimes.of(settings))


def _finish(settings: Settings, proposal: Proposal, out: Path | None, offline: KeyFolder, *, as_json: bool) -> None:
    """Write a proposal for others to sign; or sign it with what is here, and install it when that is enough."""
    for change in proposal.changes():
        console.print(f"- {change}", markup=False, soft_wrap=True)
    if out is None:
        _tell(proposal.sign(offline))
        if not proposal.missing():
            published = _install(settings, proposal)
            if as_json:
                show_json(_facts(proposal, folder=None, published=published))
            return
    folder = out or settings.home / "proposal"
    proposal.save(folder)
    _tell_missing(proposal, folder)
    if as_json:
        show_json(_facts(proposal, folder=folder, published={}))


def _facts(proposal: Proposal, *, folder: Path | None, published: dict[str, int]) -> dict[str, object]:
    """A proposal as programs read it: what it changes, whose signatures are missing, and what was published."""
    from server.signing.proposal import told

    return {
        "changes": list(proposal.changes()),
        "missing": [told(one) for one in proposal.missing()],
        "proposal": None if folder is None else str(folder),
        "published": published,
    }


def _install(settings: Settings, proposal: Proposal) -> dict[str, int]:
    with audited(Service(settings).registry, "trust.publish", ", ".join(sorted(proposal.new))):
        is_new = _ceremonies(settings).publish(proposal)
    if not is_new:
        console.print("This is published already.")
        return {}
    root_first = sorted(proposal.new.items(), key=lambda item: (item[0] != "root", item[0]))
    published = {name: int(metadata.signed.version) for name, metadata in root_first}
    names = ", ".join(f"{name} v{number}" for name, number in published.items())
    console.print(f"Published: {names}. Devices see it at their next check.")
    return published


def _tell(done: Sequence[tuple[str, str]]) -> None:
    for document, keyid in done:
        console.print(f"Signed {document} with {keyid[:8]}.")


def _tell_missing(proposal: Proposal, folder: Path) -> None:
    from server.signing.proposal import told

    for missing in proposal.missing():
        console.print(f"Missing: {told(missing)}.", soft_wrap=True)
    if proposal.missing():
        console.print(
            f"Copy {folder} to each key holder: lamella trust sign {folder.name} --keys THEIRS", soft_wrap=True
        )
    console.print(f"With enough signatures, on the server: lamella trust publish {folder}", soft_wrap=True)
