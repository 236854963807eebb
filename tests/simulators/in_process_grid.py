"""Flower's Grid inside one process: devices are functions, and they can be slow, silent or hostile."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

Behaviour = Callable[[Message], Message | None]


class InProcessGrid(Grid):
    """Delivers each message to its node's behaviour; None means that no reply ever comes.

    `clock` advances by `seconds_per_pull` at every pull, so deadlines pass without waiting.
    """

    def __init__(self, nodes: dict[int, Behaviour], *, seconds_per_pull: float = 1.0) -> None:
        # In a real run the process that Flower starts knows which task it is.
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
        self.nodes = nodes
        self.time = 0.0
        self.seconds_per_pull = seconds_per_pull
        self._replies: dict[str, Message] = {}
        self.sent: list[Message] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def set_run(self, run: object) -> None:
        raise AssertionError("not used")

    @property
    def run(self) -> object:
        raise AssertionError("not used")

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise AssertionError("not used")

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for number, message in enumerate(messages):
            # Flower numbers messages when it sends them; here the count of messages does it.
            message_id = f"message-{len(self.sent)}-{number}"
            message.metadata._message_id = message_id
            self.sent.append(message)
            ids.append(message_id)
            reply = self.nodes[message.metadata.dst_node_id](copy.deepcopy(message))
            if reply is not None:
                self._replies[message_id] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.time += self.seconds_per_pull
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise AssertionError("not used")


def failed(message: Message, reason: str) -> Message:
    """The reply that Flower makes when a ClientApp raises."""
    return Message(Error(code=1, reason=reason), reply_to=message)


def replied(message: Message, content: RecordDict) -> Message:
    """An ordinary reply."""
    return Message(content=content, reply_to=message)
