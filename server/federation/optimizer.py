"""How the server moves the adapter by the averaged update: FedAvg and FedAdam."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.federation.replies import AdapterState

_MOMENTUM, _VARIANCE = "momentum/", "variance/"


@dataclass
class ServerOptimizer:
    """The server's step; its state is plain arrays so that a resumed run goes on as if it had never stopped.

    FedAvg adds `learning_rate * update`. FedAdam is Algorithm 2 of Reddi et al. 2021 (Adaptive Federated Optimization),
    with the averaged update as its pseudo-gradient.
    """

    strategy: Literal["fedavg", "fedadam"]
    learning_rate: float
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3
    momentum: AdapterState = field(default_factory=dict)
    variance: AdapterState = field(default_factory=dict)

    def step(self, adapter: Mapping[str, npt.NDArray[np.float32]], update: AdapterState) -> AdapterState:
        """Return the adapter after one server step; the inputs are left as they are."""
        return {name: (tensor + self._move(name, update[name])).astype(np.float32) for name, tensor in adapter.items()}

    def _move(self, name: str, update: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self.strategy == "fedavg":
            return np.asarray(self.learning_rate * update, dtype=np.float32)
        momentum = self.momentum.get(name, np.zeros_like(update))
        variance = self.variance.get(name, np.full_like(update, self.tau**2))
        self.momentum[name] = np.asarray(self.beta_1 * momentum + (1 - self.beta_1) * update, dtype=np.float32)
        self.variance[name] = np.asarray(self.beta_2 * variance + (1 - self.beta_2) * update**2, dtype=np.float32)
        step = self.learning_rate * self.momentum[name] / (np.sqrt(self.variance[name]) + self.tau)
        return np.asarray(step, dtype=np.float32)

    def state(self) -> AdapterState:
        """The optimizer's memory under flat names, to be kept beside the adapter."""
        return {_MOMENTUM + k: v for k, v in self.momentum.items()} | {
            _VARIANCE + k: v for k, v in self.variance.items()
        }

    def load_state(self, state: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Take back what `state` gave."""
        self.momentum = {k.removeprefix(_MOMENTUM): v for k, v in state.items() if k.startswith(_MOMENTUM)}
        self.variance = {k.removeprefix(_VARIANCE): v for k, v in state.items() if k.startswith(_VARIANCE)}
