import errno

import pytest

from server.cli import main as entry
from server.cli.main import app
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
