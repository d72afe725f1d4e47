"""How a model may reuse segments, and why a lookup found less than all of it. Pure."""

from enum import Enum, StrEnum


class Reuse(StrEnum):
    """What a model's state allows; a lookup offers only what can really be restored."""

    CUT = "cut"
    """Plain attention: a segment may be restored and truncated at any token."""
    WHOLE = "whole"
    """Segments carry state that cannot be cut (hybrid blocks with recurrent state): usable at their ends only."""
    STATE = "state"
    """Only a snapshot makes a point usable; blocks alone do not."""


class MissReason(StrEnum):
    """Why a prompt was not found whole."""

    NEVER_SEEN = "never_seen"
    EVICTED = "evicted"
    SUPERSEDED = "superseded"
    """The `parent_key` named a tail that a longer row has replaced; its tokens are still found by content."""
    UNKNOWN_PARENT = "unknown_parent"
    """The `parent_key` names no row that this host knows of."""
    GATED = "gated"
    """The save policy, or a full tier, kept it from being stored."""
    OTHER_NAMESPACE = "other_namespace"
    """The same tokens are stored, but by another model file, adapter set or context shape."""
    UNCUTTABLE = "uncuttable"
    """More of it is stored, inside a segment that this model can only restore whole (longer than its sliding window)."""
    WITHHELD = "withheld"
    """It is stored, but a worker died while it read it: it is not offered to the request that was in flight then."""
    RECOVERING = "recovering"
    """The daemon has just started and not found it yet; it is still reading its files."""
    RACED = "raced"
    """A file was taken away while it was being read."""
    CORRUPT = "corrupt"
    DAEMON_AWAY = "daemon_away"
    # What a worker finds out by itself:
    UNCACHED_MODEL = "uncached_model"
    """The model's state cannot be restored exactly, or the daemon does not take this worker: `model_info` says why."""
    NO_CELLS = "no_cells"
    """It is stored, but the model had no cells free for it."""
    TOO_FEW = "too_few"
    """The tokens that were missing are computed in less time than they are fetched."""


class Refusal(Enum):
    """Why a reservation was not given. Values, not errors: the save is simply skipped."""

    NO_BUDGET = "no_budget"
    BEING_WRITTEN = "being_written"
    NO_PARENT = "no_parent"
    """The block before it is neither stored nor being written, so nobody could reach it."""
    RECOVERING = "recovering"
    NO_SPACE = "no_space"
    """The filesystem is full although the budget is not."""
    UNKNOWN_TIER = "unknown_tier"
    DAEMON_AWAY = "daemon_away"
