"""Which frames of a recording rest on damaged or lost data, by their packets' numbers in decoding order.

Damage spreads along references: whatever is decoded behind it may refer to it, until a clean key frame.
"""

from dataclasses import dataclass

from av.video.frame import PictureType, VideoFrame


@dataclass(eq=False, slots=True)
class PacketState:
    """Travels with a packet through the decoder and comes out with its picture."""

    time: int | None
    order: int
    is_key: bool
    submitted: int = 0  # packets that the decoder had been given before
    failed: bool = False
    shown: bool = False
    left_out: bool = False
    resolved: bool = False


@dataclass
class Damage:
    """Which pictures may rest on lost data, by decoding order."""

    first: int | None = None
    last: int = -1
    clean_from: int = -1
    unreported: int | None = None
    leading: tuple[int, int] | None = None  # number and time of a key picture that damaged ones lead

    def note(self, first: int, last: int) -> None:
        """Distrust pictures from number `first` on, until a key picture behind `last`."""
        self.unreported = first if self.unreported is None else min(self.unreported, first)
        if first >= self.clean_from:
            self.first = first if self.first is None else min(self.first, first)
            self.last = max(self.last, last)

    def allows(self, frame: VideoFrame, state: PacketState) -> bool:
        """Whether a picture, taken in display order, rests on whole data only."""
        if self.leading is not None and state.order > self.leading[0] and (state.time or 0) < self.leading[1]:
            return False
        if self.first is None or state.order < self.first:
            return True
        if self.ends_with(frame, state):
            self.first, self.clean_from = None, state.order
            return True
        return False

    def ends_with(self, frame: VideoFrame, state: PacketState) -> bool:
        """Whether a picture, and what is shown after it, rests on nothing of the damage noted."""
        # A key *packet* may start a gradual refresh: only an intra picture restores trust.
        is_intra = state.is_key and frame.key_frame and frame.pict_type == PictureType.I
        return self.first is not None and state.order > self.last and is_intra

    def note_leading(self, order: int, key: int, key_time: int) -> None:
        """Distrust the pictures that follow key picture `key` and are shown before it."""
        self.unreported = order if self.unreported is None else min(self.unreported, order)
        self.leading = key, key_time

    def report(self) -> int | None:
        """The lowest number that has been distrusted since the last call, None if none was."""
        order, self.unreported = self.unreported, None
        return order
