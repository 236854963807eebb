import numpy as np
import pytest

from server.federation.optimizer import ServerOptimizer


def arrays(*values):
    return {"a": np.array(values, np.float32)}


def test_fedavg_adds_the_scaled_update_and_leaves_its_inputs():
    adapter = arrays(1, 2)
    moved = ServerOptimizer("fedavg", 0.5).step(adapter, arrays(2, -2))
    np.testing.assert_allclose(moved["a"], [2, 1])
    np.testing.assert_allclose(adapter["a"], [1, 2])


def test_fedadam_follows_algorithm_2_of_reddi_et_al():
    optimizer = ServerOptimizer("fedadam", 0.1, beta_1=0.9, beta_2=0.99, tau=1e-3)
    x, m, v = 1.0, 0.0, 1e-6
    state = arrays(x)
    for delta in (0.5, -0.2, 0.1):
        m, v = 0.9 * m + 0.1 * delta, 0.99 * v + 0.01 * delta**2
        x += 0.1 * m / (v**0.5 + 1e-3)
        state = optimizer.step(state, arrays(delta))
    assert state["a"][0] == pytest.approx(x, rel=1e-5)


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_a_resumed_optimizer_goes_on_as_if_it_had_never_stopped(strategy):
    whole, first = ServerOptimizer(strategy, 0.1), ServerOptimizer(strategy, 0.1)
    state = first.step(whole.step(arrays(0, 0), arrays(1, -1)), arrays(0, 0))
    del state
    a = whole.step(arrays(0, 0), arrays(0.5, 0.5))
    first = ServerOptimizer(strategy, 0.1)
    first.step(arrays(0, 0), arrays(1, -1))
    second = ServerOptimizer(strategy, 0.1)
    second.load_state(first.state())
    np.testing.assert_array_equal(second.step(arrays(0, 0), arrays(0.5, 0.5))["a"], a["a"])
