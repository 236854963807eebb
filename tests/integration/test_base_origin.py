"""Bases that say, or of which is said, what they were made from: real commands, and whose bill goes on."""

import json
from pathlib import Path

import pytest
from simulators.models import write_base_version

from model.export.huggingface import export_hf
from server.base_origin import mark_origin
from server.config import Settings
from server.registry import Registry

pytestmark = pytest.mark.slow


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A Hugging Face folder that says nothing of where it is from."""
    tree = write_base_version(tmp_path / "tree")
    config = json.loads((tree / "base" / "config.json").read_text())
    (tree / "base" / "config.json").write_text(json.dumps(config | {"norm_eps": 1e-6}))  # OpenELM's own
    export_hf(tree, tmp_path / "foreign")
    return tmp_path / "foreign"


def test_a_base_is_kin_of_what_its_folder_or_its_operator_says(service, foreign):
    registry = Registry.open(Settings(home=service.home))
    chat = registry.version("chat", 1).manifest.base_hash
    alone = service.lamella("base", "import", "--model", "alone", "--huggingface", str(foreign))
    assert "made from" not in alone
    assert registry.base_family(chat) == (chat,)

    mark_origin(foreign, "f" * 64)
    stray = ("base", "import", "--model", "stray", "--huggingface", str(foreign), "--dtype", "float32")
    assert "does not know: nothing that was spent there is counted" in service.run("lamella", *stray).stderr

    mark_origin(foreign, chat)
    marked = service.lamella(
        "base", "import", "--model", "marked", "--huggingface", str(foreign), "--dtype", "bfloat16"
    )
    assert f"made from base {chat[:12]}: what was spent on that counts here too" in marked
    kin = registry.version("marked", 1).manifest.base_hash
    assert registry.base_family(chat) == (chat, kin)

    # Said by the operator of weights that came before without a word; what is there already stays one version.
    (foreign / "config.json").write_text(
        json.dumps({k: v for k, v in json.loads((foreign / "config.json").read_text()).items() if "lamella" not in k})
    )
    said = ("base", "import", "--model", "alone", "--huggingface", str(foreign), "--made-from", "marked@1")
    assert "made from base" in service.lamella(*said)
    late = registry.version("alone", 1).manifest.base_hash
    assert set(registry.base_family(chat)) == {chat, kin, late}
    assert len(registry.versions("alone")) == 1
    assert "MODEL@VERSION" in service.lamella(*said[:-1], "chat@newest", expect=1)
    registry.close()
