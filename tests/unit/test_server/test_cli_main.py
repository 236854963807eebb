import errno
import json
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from client_sdk.cli import app as device_app
from server.cli import main as entry
from server.cli.main import app
from server.config import unknown_settings
from server.errors import ServerError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ServerError("tensor a is float32[2, 3], [/red] and [bold]"), "float32[2, 3], [/red] and [bold]"),
        (OSError(errno.ENOSPC, "No space left on device", "/home/x"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/home/x"), "Permission denied"),
    ],
)
def test_an_error_is_one_sentence_with_its_brackets_and_exit_code_1(monkeypatch, capsys, error, said):
    @app.command("fail-for-a-test")
    def fail() -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["lamella", "fail-for-a-test"])
    try:
        with pytest.raises(SystemExit) as ended:
            entry()
    finally:
        app.registered_commands = [c for c in app.registered_commands if c.name != "fail-for-a-test"]
    assert ended.value.code == 1
    told = " ".join(capsys.readouterr().err.split())
    assert said in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"LAMELLA_HOEM": "/x"}, {"LAMELLA_HOEM": "LAMELLA_HOME"}),
        ({"LAMELLA_GATE_MARGN": "1", "LAMELLA_HOME": "/x"}, {"LAMELLA_GATE_MARGN": "LAMELLA_GATE_MARGIN"}),
        ({"LAMELLA_SOMETHING_ELSE": "1"}, {"LAMELLA_SOMETHING_ELSE": None}),
        ({"LAMELLA_DEVICE_HOME": "/x", "LAMELLA_BASE": "y", "HOME": "/root", "LAMELLA_PORT": "1"}, {}),
    ],
)
def test_a_misspelt_setting_is_noticed(environment, said):
    assert unknown_settings(environment) == said


def test_a_misspelt_setting_is_told_on_stderr():
    done = CliRunner().invoke(app, ["privacy", "plan", "--help"], env={"LAMELLA_HOEM": "/x"})
    assert done.exit_code == 0
    epsilon = ["privacy", "epsilon", "--sampling-probability", "1", "--noise-multiplier", "0", "--steps", "1", "--json"]
    done = CliRunner().invoke(app, epsilon, env={"LAMELLA_HOEM": "/x"})
    assert "LAMELLA_HOEM is no setting; LAMELLA_HOME is one" in done.stderr
    assert json.loads(done.stdout)["pld"] == "infinity"


@pytest.mark.parametrize(("app", "name"), [(app, "lamella"), (device_app, "lamella-device")])
def test_versions_are_told_and_words_completed(app, name):
    assert CliRunner().invoke(app, ["--version"]).stdout == f"lamella {version('lamella')}\n"
    word = {"lamella": ("rel", "release"), "lamella-device": ("rot", "rotate-key")}[name]
    asked = {f"_{name.upper().replace('-', '_')}_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    done = CliRunner().invoke(app, [], prog_name=name, env={**asked, "COMP_WORDS": f"{name} {word[0]}"})
    assert done.stdout.split() == [word[1]]
