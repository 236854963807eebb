"""Both engines behind one interface, on a small model in a real slot."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
from simulators.models import LORA, write_adapter_version, write_base_version
from simulators.versions import manifest_of

from client_sdk import Device, DeviceError, EngineSettings, MissingExtraError, NothingInstalledError
from client_sdk.backends import Backend, BackendModel, Piece, likely_backend, open_backend
from client_sdk.disk import LocalDisk
from client_sdk.generation import VERSION_ADAPTER
from client_sdk.runtime import Runtime
from client_sdk.slots import TREE, SlotStore
from delta_updates import apply_package, build_package
from model import initial_adapter, preset, save_adapter
from model.adapter_format import AdapterFormat

HAS_LLAMA_CPP = importlib.util.find_spec("xllamacpp") is not None and importlib.util.find_spec("gguf") is not None
BACKENDS = [
    "torch",
    pytest.param("llamacpp", marks=pytest.mark.skipif(not HAS_LLAMA_CPP, reason="the extra llamacpp is missing")),
]
PROMPT = "The quick brown fox number 3 jumps over"
Open = Callable[..., Runtime]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base_version(tmp_path_factory.mktemp("models") / "v1")


@pytest.fixture(scope="module")
def adapted(base: Path) -> Path:
    return write_adapter_version(base, base.parent / "v2")


def install(home: Path, tree: Path, version: int) -> SlotStore:
    """Confirm a version in the slots of a home, if it is newer than what is there."""
    home.mkdir(exist_ok=True)
    slots = SlotStore(home / "slots", LocalDisk())
    if slots.pointer().highest_version < version:
        package = home / f"{version}.lmpkg"
        build_package(None, tree, package)
        slot, folder = slots.prepare()
        manifest = manifest_of(tree, version=version)
        apply_package(None, package, folder / TREE, expected_target_hash=manifest.tree_hash)
        slots.begin_test(slot, manifest, f"o{version}")
        slots.confirm()
    return slots


@pytest.fixture
def open_runtime(tmp_path: Path) -> Open:
    def open_it(tree: Path, *, version: int = 1, **settings: object) -> Runtime:
        slots = install(tmp_path, tree, version)
        chosen = EngineSettings(**({"threads": 1, "precision": "float32"} | settings))  # type: ignore[arg-type]
        return Runtime(slots, derived=tmp_path / "engine", settings=chosen)

    return open_it


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_answer_and_what_it_says_about_itself(open_runtime: Open, base: Path, backend: str) -> None:
    runtime = open_runtime(base, backend=backend)
    assert runtime.facts() is None
    answer = runtime.answer(PROMPT, max_new_tokens=8, logprobs=2)
    assert answer.engine.backend == backend
    assert (answer.version, answer.adapter, answer.engine.threads) == (1, None, 1)
    assert answer.ending.new_tokens <= 8
    assert len(answer.logprobs) == answer.ending.new_tokens
    for token in answer.logprobs:
        assert len(token.top) == 2
        assert token.logprob == pytest.approx(token.top[0][2], abs=1e-3)
    assert "".join(runtime.stream(PROMPT, max_new_tokens=8)) == answer.text
    runtime.load()
    assert runtime.answer(PROMPT, max_new_tokens=8).ending.cached_tokens > 0
    assert runtime.answer(PROMPT, max_new_tokens=0).text == ""


@pytest.mark.skipif(not HAS_LLAMA_CPP, reason="the extra llamacpp is missing")
def test_both_engines_compute_the_same_distribution(open_runtime: Open, adapted: Path) -> None:
    settings = {"precision": "float32", "cache_dtype": "float32"}
    answers = [
        open_runtime(adapted, backend=backend, **settings).answer(PROMPT, max_new_tokens=6, logprobs=3, adapter=adapter)
        for adapter in (VERSION_ADAPTER, None)
        for backend in ("torch", "llamacpp")
    ]
    for one, other in ((answers[0], answers[1]), (answers[2], answers[3])):
        assert one.text == other.text
        for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
            assert mine.token_id == theirs.token_id
            assert mine.logprob == pytest.approx(theirs.logprob, abs=2e-3)


@pytest.mark.skipif(not HAS_LLAMA_CPP, reason="the extra llamacpp is missing")
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_both_engines_answer_alike_on_a_quantised_adapter(open_runtime: Open, base: Path, form: AdapterFormat) -> None:
    tree = write_adapter_version(base, base.parent / f"v2-{form}", form=form)
    settings = {"version": 2, "precision": "float32", "cache_dtype": "float32"}
    torch, llama = (
        open_runtime(tree, backend=backend, **settings).answer(PROMPT, max_new_tokens=12, logprobs=3)
        for backend in ("torch", "llamacpp")
    )
    assert torch.text == llama.text
    assert [token.token_id for token in torch.logprobs] == [token.token_id for token in llama.logprobs]
    for mine, theirs in zip(torch.logprobs, llama.logprobs, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=2e-3)
    without = open_runtime(tree, backend="torch", **settings).answer(
        PROMPT, max_new_tokens=12, logprobs=3, adapter=None
    )
    assert (
        max(abs(mine.logprob - its.logprob) for mine, its in zip(torch.logprobs, without.logprobs, strict=False)) > 0.02
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_adapters_are_switched_by_request_and_leave_no_trace(
    open_runtime: Open, adapted: Path, tmp_path: Path, backend: str
) -> None:
    runtime = open_runtime(adapted, version=2, backend=backend)
    options = {"max_new_tokens": 6, "logprobs": 3}

    def logprobs(**more: object) -> list[object]:
        found = runtime.answer(PROMPT, **options, **more).logprobs  # type: ignore[arg-type]
        # A prompt that was read in another number of pieces differs in the last digits.
        return [(token.token_id, pytest.approx(token.logprob, abs=1e-4)) for token in found]

    own, plain = logprobs(), logprobs(adapter=None)
    assert own != plain
    state = {name: value + 0.2 for name, value in initial_adapter(preset("tiny-pyramid"), LORA, 5).items()}
    save_adapter(tmp_path / "other", state, LORA)
    base_hash = manifest_of(adapted, version=2).base_hash
    runtime.add_adapter("other", tmp_path / "other", base_hash=base_hash)
    assert logprobs(adapter="other") not in (own, plain)
    assert logprobs(adapter=None) == plain
    assert logprobs() == own
    assert set(runtime.load().adapters) == {VERSION_ADAPTER, "other"}
    with pytest.raises(DeviceError, match="was made for the base"):
        runtime.add_adapter("wrong", tmp_path / "other", base_hash="0" * 64)
    save_adapter(tmp_path / "zero", initial_adapter(preset("tiny-pyramid"), LORA, 5), LORA)
    with pytest.raises(DeviceError, match="changes nothing"):
        runtime.add_adapter("zero", tmp_path / "zero", base_hash=base_hash)
    with pytest.raises(DeviceError, match="cannot be the name"):
        runtime.add_adapter(VERSION_ADAPTER, tmp_path / "other", base_hash=base_hash)
    with pytest.raises(DeviceError, match="'missing'"):
        logprobs(adapter="missing")


@pytest.mark.parametrize("backend", BACKENDS)
def test_stop_texts_seeds_and_closing(open_runtime: Open, base: Path, backend: str) -> None:
    runtime = open_runtime(base, backend=backend)
    free = runtime.answer(PROMPT, max_new_tokens=12).text
    stop = free[len(free) // 2 : len(free) // 2 + 2]
    stopped = runtime.answer(PROMPT, max_new_tokens=12, stop=stop)
    assert stopped.text == free[: free.index(stop)]
    assert stopped.ending.reason == "stop"
    drawn = [runtime.answer(PROMPT, max_new_tokens=12, temperature=2.0, seed=seed).text for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    stream = runtime.stream(PROMPT, max_new_tokens=400)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert runtime.answer(PROMPT, max_new_tokens=12).text == free


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_may_ask_at_the_same_time(open_runtime: Open, base: Path, backend: str) -> None:
    runtime = open_runtime(base, backend=backend)
    prompts = [f"The quick brown fox number {n}" for n in range(5)]
    alone = [runtime.answer(prompt, max_new_tokens=8).text for prompt in prompts]
    found: dict[int, str] = {}

    def ask(n: int) -> None:
        found[n] = runtime.answer(prompts[n], max_new_tokens=8).text

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(len(prompts))] == alone


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [{"temperature": -1.0}, {"top_p": 0.0}, {"max_new_tokens": -1}, {"stop": ""}, {"logprobs": 21}, {"beam": 3}],
)
def test_impossible_options_are_told(open_runtime: Open, base: Path, backend: str, options: dict[str, object]) -> None:
    with pytest.raises(DeviceError, match="The model cannot do this"):
        open_runtime(base, backend=backend).answer(PROMPT, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_prompt_longer_than_the_context_is_told(open_runtime: Open, base: Path, backend: str) -> None:
    with pytest.raises(DeviceError, match="512"):
        open_runtime(base, backend=backend).answer("word " * 5000)


def test_torch_has_no_grammars_and_says_where_they_are(open_runtime: Open, base: Path) -> None:
    with pytest.raises(DeviceError, match="llamacpp"):
        open_runtime(base, backend="torch").answer(PROMPT, json_schema={})


@pytest.mark.skipif(not HAS_LLAMA_CPP, reason="the extra llamacpp is missing")
def test_json_of_a_schema(open_runtime: Open, base: Path) -> None:
    runtime = open_runtime(base, backend="llamacpp")
    # A model that has learnt nothing fills objects with white space for ever; a word of a list has none.
    text = runtime.answer(PROMPT, max_new_tokens=200, json_schema={"enum": ["certainly", "never"]}).text
    assert json.loads(text) in {"certainly", "never"}
    assert runtime.answer(PROMPT, max_new_tokens=5, json_schema={"type": "object"}).text.startswith("{")


@pytest.mark.skipif(not HAS_LLAMA_CPP, reason="the extra llamacpp is missing")
def test_gguf_files_are_made_once_and_old_ones_removed(
    open_runtime: Open, base: Path, adapted: Path, tmp_path: Path
) -> None:
    open_runtime(base, backend="llamacpp").answer(PROMPT, max_new_tokens=1)
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "engine").iterdir()}
    assert len(made) == 1
    open_runtime(adapted, version=2, backend="llamacpp").answer(PROMPT, max_new_tokens=1)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "engine").iterdir()}
    assert made.items() <= after.items()  # the base is the same: only the adapter's file is new
    assert len(after) == 2
    other = write_base_version(tmp_path / "other")
    spoilt = (other / "base" / "tokenizer_config.json").read_text().replace("{", "{ ", 1)
    (other / "base" / "tokenizer_config.json").write_text(spoilt)  # another hash is another base
    open_runtime(other, version=3, backend="llamacpp").answer(PROMPT, max_new_tokens=1)
    assert not after.keys() & {path.name for path in (tmp_path / "engine").iterdir()}


def test_what_is_not_installed_is_told_and_auto_goes_on(
    open_runtime: Open, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MissingExtraError, match=r"lamella\[device,llamacpp\]"):
        open_runtime(base, backend="llamacpp").answer(PROMPT)
    answer = open_runtime(base).answer(PROMPT, max_new_tokens=1)
    assert answer.engine.backend == "torch"
    assert "not installed" in answer.engine.why


def test_what_needs_torch_takes_torch(open_runtime: Open, base: Path, tmp_path: Path) -> None:
    answer = open_runtime(base, window=32).answer(PROMPT, max_new_tokens=600)
    assert answer.engine.backend == likely_backend(EngineSettings(window=32)) == "torch"
    if answer.ending.reason == "length":
        assert answer.ending.new_tokens == 600  # beyond the context of 512
    model = BackendModel(base / "base", "hash", None)
    assert open_backend(model, EngineSettings())[1] == "there is no folder for a GGUF file"
    with pytest.raises(DeviceError, match="float32 or int8"):
        open_backend(model, EngineSettings(backend="torch", cache_dtype="float16"))


def test_a_small_model_stays_exact(open_runtime: Open, base: Path) -> None:
    facts = open_runtime(base, backend="torch", precision="auto").load()
    assert facts.precision == "float32"
    assert dataclasses.asdict(facts)["why"] == "asked for"


def test_nothing_installed_is_told_by_every_door(tmp_path: Path) -> None:
    device = Device(tmp_path / "home")
    with pytest.raises(NothingInstalledError):
        device.load()
    with pytest.raises(NothingInstalledError):
        list(device.chat().ask("hello"))


@pytest.mark.skipif(not HAS_LLAMA_CPP, reason="the extra llamacpp is missing")
def test_llama_cpp_generates_without_torch(open_runtime: Open, adapted: Path, tmp_path: Path) -> None:
    """In a fresh process: making the GGUF files, loading, generating with the adapter."""
    open_runtime(adapted, version=2)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from client_sdk import Device, EngineSettings\n"
        "device = Device(Path(sys.argv[1]))\n"
        "answer = device.answer([{'role': 'user', 'content': 'hello'}], max_new_tokens=4)\n"
        "print(answer.engine.backend, answer.adapter, sorted(set(sys.modules) & {'torch', 'transformers', 'flwr'}))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=False, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[0] == f"llamacpp {VERSION_ADAPTER} []"


def said(pieces: Iterable[Piece]) -> list[float]:
    """Log-probabilities of an answer's tokens: small models of different versions say the same words."""
    return [token.logprob for piece in pieces for token in piece.logprobs]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_adapter_is_swapped_between_two_answers_while_others_run(
    open_runtime: Open, base: Path, adapted: Path, tmp_path: Path, backend: str
) -> None:
    other = write_adapter_version(base, tmp_path / "v3", seed=9, strength=0.5)
    runtime = open_runtime(adapted, version=1, backend=backend)
    before = said(runtime.pieces(PROMPT, max_new_tokens=12, logprobs=0))
    running = runtime.pieces(PROMPT, max_new_tokens=12, logprobs=0)
    first = next(running)
    open_runtime(other, version=2)  # the slots are switched, as by another process
    runtime.refresh()
    assert runtime.version() == 2
    after = said(runtime.pieces(PROMPT, max_new_tokens=12, logprobs=0))
    assert after != pytest.approx(before, abs=0.05)
    # What began with the old version ends with it.
    assert said([first, *running]) == pytest.approx(before, abs=1e-3)
    fresh = Runtime(runtime._slots, derived=runtime._derived, settings=runtime._settings)
    assert said(fresh.pieces(PROMPT, max_new_tokens=12, logprobs=0)) == pytest.approx(after, abs=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nobody_waits_for_a_new_adapter(
    open_runtime: Open, base: Path, adapted: Path, tmp_path: Path, backend: str
) -> None:
    other = write_adapter_version(base, tmp_path / "v3", seed=9, strength=0.5)
    runtime = open_runtime(adapted, version=1, backend=backend)
    runtime.load()
    may_go = threading.Event()
    loaded = runtime._loaded
    assert loaded is not None
    renew = loaded.backend.renewed

    def slowly(adapters: Mapping[str, Path]) -> Backend:
        may_go.wait(30)
        return renew(adapters)

    loaded.backend.renewed = slowly  # type: ignore[method-assign]
    open_runtime(other, version=2)
    versions = [runtime.answer(PROMPT, max_new_tokens=1).version for _ in range(3)]
    may_go.set()
    runtime.refresh()
    assert versions == [1, 1, 1]
    assert runtime.answer(PROMPT, max_new_tokens=1).version == 2


def test_an_adapter_that_cannot_be_opened_leaves_the_old_version_answering(
    open_runtime: Open, base: Path, adapted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = open_runtime(adapted, version=1, backend="torch")
    runtime.load()
    broken = write_adapter_version(base, tmp_path / "v2", has_effect=False)
    open_runtime(broken, version=2)
    runtime.refresh()
    assert runtime.answer(PROMPT, max_new_tokens=1).version == 1
    assert "the old one answers on" in caplog.text
    # The next version is tried again.
    open_runtime(write_adapter_version(base, tmp_path / "v3", seed=9, strength=0.5), version=3)
    runtime.refresh()
    assert runtime.answer(PROMPT, max_new_tokens=1).version == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_that_generate_through_a_swap_all_get_whole_answers(
    open_runtime: Open, base: Path, adapted: Path, tmp_path: Path, backend: str
) -> None:
    trees = [adapted, *(write_adapter_version(base, tmp_path / f"v{seed}", seed=seed, strength=0.5) for seed in (8, 9))]
    runtime = open_runtime(adapted, version=1, backend=backend)
    expected = {}
    for version, tree in enumerate(trees, start=1):
        slots = install(tmp_path / f"alone-{version}", tree, version)
        alone = Runtime(slots, derived=tmp_path / f"alone-{version}" / "engine", settings=runtime._settings)
        expected[version] = said(alone.pieces(PROMPT, max_new_tokens=10, logprobs=0))
    assert expected[1] != pytest.approx(expected[2], abs=0.05)
    assert expected[2] != pytest.approx(expected[3], abs=0.05)
    runtime.load()
    answers: list[tuple[int, list[float]]] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            answer = runtime.answer(PROMPT, max_new_tokens=10, logprobs=0)
            answers.append((answer.version, [token.logprob for token in answer.logprobs]))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in (2, 3):
        install(tmp_path, trees[version - 1], version)
        runtime.refresh()
    final = runtime.answer(PROMPT, max_new_tokens=10)
    is_over.set()
    for thread in threads:
        thread.join()
    assert final.version == 3
    assert answers
    for version, logprobs in answers:
        assert logprobs == pytest.approx(expected[version], abs=0.02)
