"""Generation on a processor: packed weights, caches, batches that others join, adapters beside the base."""

from model.inference.adapters import PackedAdapter
from model.inference.benchmark import DecodingSpeed, measure_decoding, read_bandwidth
from model.inference.cache import SequenceCache, bytes_per_token
from model.inference.decoder import Chunk, PackedDecoder
from model.inference.engine import Engine
from model.inference.linears import PRECISIONS, Precision, has_int8_products
from model.inference.lookup import PromptLookup
from model.inference.prefixes import PrefixStore
from model.inference.scheduler import Scheduler, batch_limit
from model.inference.sequence import NewToken, RunningSequence, Sampling
from model.inference.source import CheckpointSource, ModelSource

__all__ = [
    "PRECISIONS",
    "CheckpointSource",
    "Chunk",
    "DecodingSpeed",
    "Engine",
    "ModelSource",
    "NewToken",
    "PackedAdapter",
    "PackedDecoder",
    "Precision",
    "PrefixStore",
    "PromptLookup",
    "RunningSequence",
    "Sampling",
    "Scheduler",
    "SequenceCache",
    "batch_limit",
    "bytes_per_token",
    "has_int8_products",
    "measure_decoding",
    "read_bandwidth",
]
