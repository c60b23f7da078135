"""The drafts of a step: proposes some for each sequence and chooses how many to compute. No JAX."""

from collections.abc import Sequence as List

from .drafts import allocate_drafts
from .sequence import Sequence, SequenceFault
from .step_times import StepTimes

Drafts = tuple[int, ...]


def propose_drafts(sequence: Sequence) -> Drafts:
    """Drafts of what follows the known tokens, if drafts are possible.

    Raises:
      SequenceFault: they cannot be computed.
    """
    try:
        most = sequence.limit - len(sequence.tokens) - 1 if sequence.draftable else 0
        return sequence.drafter.propose(sequence.tokens, most)
    except Exception as error:
        raise SequenceFault(sequence) from error


def choose_drafts(times: StepTimes, sequences: List[Sequence], proposed: List[Drafts]) -> list[Drafts]:
    """The drafts of each sequence that a step of all these sequences takes."""
    offers = [(s.drafter.chance, len(drafts)) for s, drafts in zip(sequences, proposed, strict=True)]
    counts = allocate_drafts(offers, times.sizes("decode"), lambda size: times.seconds("decode", size))
    return [drafts[:count] for drafts, count in zip(proposed, counts, strict=True)]
