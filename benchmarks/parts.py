"""The parts of a run, in their order: what each measures, how long it usually takes, and so how long a run still takes. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A module of this package with `run(setting) -> list[Figure]`.

    Attributes:
        purpose: what it measures, in one sentence.
        usual_s: seconds it takes on two cores with llama-server as a peer. quick_s: the same with `--quick`.
    """

    purpose: str
    usual_s: float
    quick_s: float


PARTS = {
    "overhead": Part("What a decoded token and an empty call cost on top of their floors.", 36, 20),
    "warmth": Part("Time to first token of a 2 048-token prompt that has been seen before.", 113, 54),
    "throughput": Part("Tokens per second of many streams of one model together.", 155, 60),
    "agents": Part("Time to first token of 4 agents on one warmed 1 024-token prefix, 64 own tokens each.", 103, 35),
    "gaps": Part("What running streams notice of a long prompt next to them.", 104, 18),
    "ties": Part("How often company changes a greedy answer.", 28, 6),
    "stalls": Part("What a running stream notices of cache work next to it.", 39, 17),
    "speculation": Part("Prompt-lookup speculation: gain and loss.", 22, 13),
    "cache": Part("Copying, looking up and storing KV state.", 28, 12),
    "recovery": Part("From a SIGKILL to the next answer.", 53, 15),
    "scaling": Part("More models, more clients, longer prompts.", 107, 50),
    "idle": Part("Memory, processor time, start-up and size of a host that does nothing.", 20, 10),
}


def seconds_left(names: Sequence[str], num_done: int, elapsed_s: float, *, quick: bool) -> float:
    """Roughly how long the parts that are not done will take, at the pace of those that are.

    Args:
        names: the parts of the run, in order; the first `num_done` are done.
        elapsed_s: what those took.
    """
    usual_s = [PARTS[name].quick_s if quick else PARTS[name].usual_s for name in names]
    done_s, left_s = sum(usual_s[:num_done]), sum(usual_s[num_done:])
    return left_s * elapsed_s / done_s if num_done else left_s


def minutes(seconds: float) -> str:
    """`12:05`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
