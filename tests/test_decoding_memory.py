"""Many decoders of large recordings never take more memory together than there is."""

import threading

import pytest

from featurecache.video import sampling
from featurecache.video.memory import DecodingRoom, decoder_bytes, free_memory_bytes
from featurecache.video.sampling import ClipFrames, read_clips
from tests.make_videos import write_video


class Meeting:
    """Threads that take room, and how many of them had it at once."""

    def __init__(self, room: DecodingRoom) -> None:
        self.room, self.inside, self.most, self.lock = room, 0, 0, threading.Lock()
        self.leave = threading.Event()

    def take(self, need_bytes: int) -> None:
        with self.room.taken(need_bytes):
            with self.lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
                if self.inside == 2:
                    self.leave.set()
            self.leave.wait(0.05)
            with self.lock:
                self.inside -= 1

    def run(self, needs: list[int]) -> int:
        threads = [threading.Thread(target=self.take, args=(need,)) for need in needs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "nobody waits for ever"
        return self.most


@pytest.mark.parametrize(("needs", "most"), [([3, 3, 3, 3], 2), ([9, 9, 9], 1), ([50, 50], 1), ([1, 1, 1], 3)])
def test_decoders_wait_for_room_and_one_that_is_too_large_runs_alone(needs: list[int], most: int) -> None:
    assert Meeting(DecodingRoom(8)).run(needs) <= most


def test_two_recordings_read_in_turn_by_one_thread_do_not_wait_for_each_other(tmp_path, monkeypatch) -> None:
    room = DecodingRoom(1)
    monkeypatch.setattr(sampling, "decoding_room", lambda: room)
    paths = [write_video(tmp_path / f"{name}.mp4", metadata={"comment": name}) for name in "ab"]
    spans = [(0, 1_000_000), (1_000_000, 2_000_000)]
    for pair in zip(*(read_clips(path, spans, 2) for path in paths), strict=True):
        assert all(isinstance(clip, ClipFrames) for clip in pair)


def test_threads_that_share_too_little_room_decode_every_clip(tmp_path, monkeypatch) -> None:
    room = DecodingRoom(1)
    monkeypatch.setattr(sampling, "decoding_room", lambda: room)
    path, done = write_video(tmp_path / "a.mp4"), []

    def decode() -> None:
        done.extend(read_clips(path, [(0, 1_000_000), (1_000_000, 2_000_000)], 2))

    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [type(clip) for clip in done] == [ClipFrames] * 8


def test_what_a_decoder_needs_follows_the_size_of_its_frames() -> None:
    of_8k, of_hd = decoder_bytes(8192, 4320, 12), decoder_bytes(1920, 1080, 12)
    assert of_8k / of_hd == pytest.approx(8192 * 4320 / (1920 * 1080))
    assert 0.5e9 < of_8k < 1e9
    assert decoder_bytes(8192, 4320, 24) > of_8k, "ten bits a channel"


def test_the_limit_of_a_container_or_job_counts_as_memory(tmp_path, monkeypatch) -> None:
    group = tmp_path / "job" / "step"
    group.mkdir(parents=True)
    for folder, limit in ((group, "max"), (group.parent, "3000000")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("2500000\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 200000\n")
    (tmp_path / "own").write_text("0::/job/step\n")
    monkeypatch.setattr("featurecache.video.memory._CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr("featurecache.video.memory._OWN_GROUP", tmp_path / "own")
    assert free_memory_bytes() == 700_000
