"""From prompts to tokens: lookup, batches that others join, remembered beginnings."""

import threading
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import ContextLengthError, LayeredTransformer, generate, preset
from model.inference import (
    Engine,
    ModelSource,
    PackedDecoder,
    PrefixStore,
    PromptLookup,
    Sampling,
    Scheduler,
    SequenceCache,
    batch_limit,
)
from model.inference.sequence import PREFILL_TOKENS

CONFIG = preset("tiny-pyramid")


@pytest.fixture(scope="module")
def model() -> LayeredTransformer:
    torch.manual_seed(0)
    made = LayeredTransformer(CONFIG)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2 if "norm" in name else 0.08)
    return made.eval()


@pytest.fixture
def engine(model: LayeredTransformer) -> Engine:
    return Engine(PackedDecoder(ModelSource(model), precision="float32"))


def tokens_of(engine: Engine, prompt: Sequence[int], **options: object) -> list[int]:
    sampling = Sampling(**({"max_new_tokens": 20} | options))  # type: ignore[arg-type]
    return [token.token_id for token in engine.tokens(engine.start(prompt, sampling))]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_p": 0.9, "seed": 4}])
@pytest.mark.parametrize("is_lookup_on", [True, False])
def test_tokens_are_those_of_the_model(
    engine: Engine, model: LayeredTransformer, options: dict[str, float], is_lookup_on: bool
) -> None:
    for prompt in ([5, 6, 7] * 6, [11]):
        expected = list(generate(model, prompt, max_new_tokens=20, **options))  # type: ignore[arg-type]
        assert tokens_of(engine, prompt, is_lookup_on=is_lookup_on, **options) == expected


def test_a_stop_token_ends_and_is_not_part_of_the_answer(engine: Engine) -> None:
    free = tokens_of(engine, [5, 6, 7])
    sequence = engine.start([5, 6, 7], Sampling(max_new_tokens=20, stop_ids=frozenset({free[4]})))
    stopped = [token.token_id for token in engine.tokens(sequence)]
    assert stopped == free[: free.index(free[4])]
    assert sequence.is_stopped


def test_a_long_prompt_is_read_in_pieces(engine: Engine, model: LayeredTransformer) -> None:
    prompt = [(7 * n) % 500 for n in range(PREFILL_TOKENS + 40)]
    assert tokens_of(engine, prompt, max_new_tokens=5) == list(generate(model, prompt, max_new_tokens=5))


def test_logprobs_are_those_of_the_models_distribution(engine: Engine, model: LayeredTransformer) -> None:
    token = next(engine.tokens(engine.start([5, 6], Sampling(max_new_tokens=1, temperature=2.0, seed=1, logprobs=3))))
    with torch.inference_mode():
        expected = model(torch.tensor([[5, 6]]))[0, -1].log_softmax(-1)
    assert token.logprob == pytest.approx(float(expected[token.token_id]), abs=1e-4)
    assert [other for other, _ in token.top] == expected.topk(3).indices.tolist()
    assert [value for _, value in token.top] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-4)


def test_what_was_read_is_not_read_again(engine: Engine) -> None:
    prompt = list(range(20, 60))
    first = engine.start(prompt, Sampling(max_new_tokens=6))
    answer = [token.token_id for token in engine.tokens(first)]
    assert first.cached_tokens == 0
    again = engine.start(prompt, Sampling(max_new_tokens=6))
    assert [token.token_id for token in engine.tokens(again)] == answer
    assert again.cached_tokens == len(prompt) - 1
    goes_on = engine.start([*prompt, *answer, 3], Sampling(max_new_tokens=2))
    list(engine.tokens(goes_on))
    assert goes_on.cached_tokens >= len(prompt) + len(answer) - 1


def test_an_answer_that_is_closed_leaves_nothing_running(engine: Engine) -> None:
    stream = engine.tokens(engine.start([5, 6, 7], Sampling(max_new_tokens=100)))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert engine._scheduler.running == ()
    assert len(tokens_of(engine, [5, 6, 7])) == 20


def test_threads_get_the_answers_they_would_get_alone(engine: Engine) -> None:
    prompts = [[n, n + 1, n + 2] for n in range(10, 16)]
    alone = [tokens_of(engine, prompt, temperature=0.7, seed=n) for n, prompt in enumerate(prompts)]
    found: dict[int, list[int]] = {}

    def ask(n: int) -> None:
        found[n] = tokens_of(engine, prompts[n], temperature=0.7, seed=n)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(len(prompts))] == alone


def test_impossible_requests_are_told(engine: Engine) -> None:
    with pytest.raises(ValueError, match="no tokens"):
        engine.start([], Sampling(max_new_tokens=1))
    with pytest.raises(ContextLengthError, match="512"):
        engine.start([1] * 512, Sampling(max_new_tokens=1))
    small = Engine(engine.decoder, cache_bytes=1000)
    with pytest.raises(ContextLengthError, match="1000 are allowed"):
        small.start([1], Sampling(max_new_tokens=1))


# --- lookup


def test_lookup_goes_on_where_the_text_went_on() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 9, 2, 3])
    assert lookup.propose() == [4, 5, 9, 2]
    lookup.extend([4])
    assert lookup.propose()[:2] == [5, 9]
    assert PromptLookup([1, 2, 3]).propose() == []


def test_lookup_trusts_success_and_pauses_after_failure() -> None:
    lookup = PromptLookup([1, 2, 1, 2])
    lookup.learn(4, 4)
    assert lookup.guesses == 8
    lookup.learn(8, 3)
    assert lookup.guesses == 3
    for _ in range(3):
        lookup.learn(2, 0)
    silent = 0
    while not lookup.propose():
        silent += 1
    assert silent == 7


# --- the scheduler, with a model that is a function of what came before


class FakeMember:
    """Its tokens depend on its own history only, and on nothing that the batch does."""

    def __init__(self, name: int, length: int, most_bytes: int) -> None:
        self.name, self.length, self.most_bytes = name, length, most_bytes
        self.tokens: list[int] = []
        self.steps_seen: list[int] = []

    @property
    def is_done(self) -> bool:
        return len(self.tokens) == self.length

    def next_token(self) -> int:
        return hash((self.name, *self.tokens)) % 1000


def alone(name: int, length: int) -> list[int]:
    member = FakeMember(name, length, 0)
    while not member.is_done:
        member.tokens.append(member.next_token())
    return member.tokens


MEMBERS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 100)), min_size=1, max_size=25)


@settings(max_examples=200, deadline=None)
@given(members=MEMBERS, arrivals=st.lists(st.integers(0, 3), max_size=40), batches=st.lists(st.integers(1, 6)))
def test_every_request_gets_its_own_tokens_within_memory_and_in_its_turn(
    members: list[tuple[int, int]], arrivals: list[int], batches: list[int]
) -> None:
    made = [FakeMember(n, length, most) for n, (length, most) in enumerate(members)]
    order: list[int] = []

    def run(batch: Sequence[FakeMember]) -> None:
        assert len(batch) <= scheduler.max_batch
        assert sum(member.most_bytes for member in batch) <= 100
        for member in batch:
            if not member.tokens:
                order.append(member.name)
            member.tokens.append(member.next_token())

    scheduler: Scheduler[FakeMember] = Scheduler(run, max_batch=1, max_bytes=100)
    waiting, arriving, limits = list(made), iter(arrivals), iter(batches)
    most_steps = sum(length for length, _ in members) + len(members) + len(arrivals)
    for _ in range(most_steps):  # somebody advances in every step in which somebody is there
        for _ in range(next(arriving, len(members))):
            if waiting:
                scheduler.submit(waiting.pop(0))
        # Nobody is put out of a running batch when the limit falls.
        scheduler.max_batch = max(next(limits, 1), len(scheduler.running))
        scheduler.step()
    assert [member.tokens for member in made] == [alone(n, length) for n, (length, _) in enumerate(members)]
    assert order == sorted(order)
    assert scheduler.running == ()


def test_a_request_that_never_fits_is_refused_and_a_large_one_is_not_overtaken() -> None:
    ran: list[int] = []

    def run(batch: Sequence[FakeMember]) -> None:
        for member in batch:
            ran.append(member.name)
            member.tokens.append(0)

    scheduler: Scheduler[FakeMember] = Scheduler(run, max_batch=4, max_bytes=100)
    with pytest.raises(ContextLengthError, match="101"):
        scheduler.submit(FakeMember(0, 1, 101))
    for name, most in ((1, 60), (2, 100), (3, 10)):
        scheduler.submit(FakeMember(name, 2, most))
    while scheduler.step():
        pass
    assert ran == [1, 1, 2, 2, 3, 3]


def test_a_withdrawn_request_frees_its_place() -> None:
    scheduler: Scheduler[FakeMember] = Scheduler(lambda batch: None, max_batch=1, max_bytes=10)
    first, second = FakeMember(1, 5, 10), FakeMember(2, 5, 10)
    scheduler.submit(first)
    scheduler.submit(second)
    scheduler.step()
    scheduler.withdraw(first)
    scheduler.withdraw(first)
    scheduler.step()
    assert scheduler.running == (second,)


def test_the_batch_shrinks_with_the_cores_that_are_free() -> None:
    assert [batch_limit(most=8, threads=threads, cores=4) for threads in (1, 2, 4)] == [2, 4, 8]
    assert batch_limit(most=1, threads=1, cores=16) == 1


# --- remembered beginnings


def cache_of(tokens: Sequence[int]) -> SequenceCache:
    cache = SequenceCache(CONFIG)
    cache.reserve(len(tokens))
    cache.tokens.extend(tokens)
    return cache


def test_the_longest_beginning_of_the_same_adapter_is_taken() -> None:
    store = PrefixStore(1 << 30)
    store.keep(cache_of(range(10)), None)
    store.keep(cache_of(range(30)), "a")
    found = store.take([*range(20), 99], "a")
    assert found is not None
    assert found.tokens == list(range(20))
    found = store.take([*range(40)], "a")  # the branch above took a copy
    assert found is not None
    assert found.length == 30
    assert store.take([*range(40)], "b") is None
    assert store.take([3, 4, 5], None) is None


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    size = cache_of(range(10)).num_bytes
    store = PrefixStore(2 * size)
    for first in (100, 200, 300):
        store.keep(cache_of(range(first, first + 20)), None)
    assert store.num_bytes <= 2 * size
    assert store.take(list(range(100, 130)), None) is None
    assert store.take(list(range(300, 330)), None) is not None
    store.clear()
    assert store.num_bytes == 0
