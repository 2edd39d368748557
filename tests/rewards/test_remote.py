"""A scorer behind a socket gives the same scores, gradients and identity; what fails there is an error here."""

from __future__ import annotations

import errno
import io
import json
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.config import RewardParams, reward_params
from rtdmd.rewards.frames import read_frame, write_frame
from rtdmd.rewards.golden import check_rewards
from rtdmd.rewards.registry import load_here, load_reward
from rtdmd.rewards.remote import RemoteReward
from rtdmd.rewards.server import RewardServer, make_room
from tests.rewards.conftest import served
from tests.rewards.reward_checks import NONE, PROMPTS, check_gradient, check_one_by_one, pictures


@pytest.fixture(scope="module")
def entry(tiny_clip: Path) -> RewardParams:
    return reward_params(name="clipscore", model=str(tiny_clip), socket="s/clip.sock")


@pytest.fixture(scope="module")
def server(entry: RewardParams, folder: Path) -> Iterator[RewardServer]:
    with served(load_here(entry), folder / "s/clip.sock") as server:
        yield server


@pytest.fixture(scope="module")
def remote(server: RewardServer, entry: RewardParams, folder: Path) -> Iterator[RemoteReward]:
    reward = load_reward(entry, root=folder)
    assert isinstance(reward, RemoteReward)
    yield reward
    reward.close()


def test_scores_are_the_local_ones_bit_for_bit(remote: RemoteReward, entry: RewardParams) -> None:
    local = load_here(entry)
    assert torch.equal(remote.score(pictures(), PROMPTS, NONE), local.score(pictures(), PROMPTS, NONE))
    assert remote.identity() == local.identity()
    for name in ("name", "differentiable", "needs_metadata", "range"):
        assert getattr(remote, name) == getattr(local, name)
    check_one_by_one(remote)


def test_gradients_cross_the_socket(remote: RemoteReward, entry: RewardParams) -> None:
    weights = torch.tensor([1.0, -2.0, 0.5])
    gradients = []
    for reward in (remote, load_here(entry)):
        images = pictures().requires_grad_()
        (reward.score(images, PROMPTS, NONE) * weights).sum().backward()
        gradients.append(images.grad)
    assert gradients[0] is not None and gradients[1] is not None
    assert (gradients[0] - gradients[1]).abs().max() < 1e-7 < gradients[1].abs().max()
    check_gradient(remote, 36)
    assert not remote.score(pictures(), PROMPTS, NONE).requires_grad
    with torch.no_grad():
        assert not remote.score(pictures().requires_grad_(), PROMPTS, NONE).requires_grad


def test_it_passes_the_golden_check(remote: RemoteReward, tmp_path: Path) -> None:
    assert len(check_rewards([remote], tmp_path)) == 1
    assert check_rewards([remote], tmp_path) == []


def test_what_fails_there_is_an_error_here_and_the_scorer_goes_on(remote: RemoteReward) -> None:
    bad = pictures()
    bad[1, 0, 0, 0] = float("nan")
    with pytest.raises(RtdmdError, match="reward clipscore gave a score that is not finite, at image 1"):
        remote.score(bad, PROMPTS, NONE)
    with pytest.raises(ValueError, match="2 prompts"):
        remote.score(pictures(), PROMPTS[:2], NONE)
    assert remote.score(pictures(), PROMPTS, NONE).shape == (3,)


def test_metadata_and_infinite_ranges_arrive(folder: Path) -> None:
    class Counting:
        name, differentiable, needs_metadata, range = "world_verifier", False, True, (0.0, float("inf"))

        def identity(self) -> dict[str, Any]:
            return {"name": self.name}

        def score(self, images: Any, prompts: Any, metadata: Any) -> torch.Tensor:
            if metadata[0] is None:
                raise UserError("needs metadata")
            return torch.tensor([float(record["include"][0]["count"]) for record in metadata])

    with served(Counting(), folder / "m.sock"):
        remote = load_reward(reward_params(name="world_verifier", soft_weight=0.5, socket="m.sock"), root=folder)
        assert remote.range == (0.0, float("inf")) and remote.needs_metadata
        records = [{"include": [{"class": "circle", "count": n}]} for n in (1, 2, 3)]
        images = pictures().requires_grad_()
        assert remote.score(images, PROMPTS, records).tolist() == [1, 2, 3]
        assert not remote.score(images, PROMPTS, records).requires_grad
        with pytest.raises(UserError, match="needs metadata"):
            remote.score(images, PROMPTS, NONE)
        with pytest.raises(UserError, match=r"rewards: clipscore: socket: .* serves world_verifier"):
            load_reward(reward_params(name="clipscore", model="x", socket="m.sock"), root=folder)
        remote.close()  # type: ignore[attr-defined]


def test_only_the_user_may_open_it_and_it_goes_when_it_ends(entry: RewardParams, folder: Path) -> None:
    path = folder / "own.sock"
    with served(load_here(entry), path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(UserError, match="already served"):
            RewardServer(load_here(entry), path)
        assert path.exists()
    assert not path.exists()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()  # a file that nobody listens to, as after a kill
    with served(load_here(entry), path):
        assert path.exists()


def test_what_is_no_socket_of_ours_is_left_alone(entry: RewardParams, folder: Path) -> None:
    """A file, a link to one, a link to nothing; and another server's socket that took the place of this one's."""
    report, link, dangling = folder / "report.md", folder / "link", folder / "dangling"
    report.write_text("figures")
    link.symlink_to(report)
    dangling.symlink_to("nowhere")
    for path in (report, link, dangling):
        with pytest.raises(UserError, match=rf"^rewards: clipscore: socket: {path} exists and is not a socket; name a"):
            RewardServer(load_here(entry), path)
    assert (report.read_text(), link.readlink(), str(dangling.readlink())) == ("figures", report, "nowhere")
    path = folder / "taken.sock"
    with served(load_here(entry), path):
        path.unlink()
        path.write_text("a note")
    assert path.read_text() == "a note"


def test_where_no_socket_can_be_made_it_is_one_line(
    entry: RewardParams, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network file systems, and where another server came first by a moment."""

    def refuse(_: RewardServer) -> None:
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr(RewardServer, "server_bind", refuse)
    path = folder / "new.sock"
    says = rf"^rewards: clipscore: socket: {path} cannot be listened on \(Address already in use\); name a new path, on"
    with pytest.raises(UserError, match=says):
        RewardServer(load_here(entry), path)


def test_a_socket_whose_queue_is_full_is_served(folder: Path) -> None:
    path = folder / "full.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(path))
        listener.listen(0)
        waiting.connect(str(path))
        with pytest.raises(UserError, match=r"full\.sock is already served by another process"):
            make_room(path, "clipscore")
    assert path.exists()


def test_nobody_there_and_paths_too_long_are_errors(entry: RewardParams, folder: Path) -> None:
    absent = entry.model_copy(update={"socket": "absent.sock"})
    with pytest.raises(UserError, match=r"clipscore: nothing answers on .*start `rtdmd rewards serve clipscore`"):
        load_reward(absent, root=folder)
    with pytest.raises(UserError, match="is longer than 100 bytes"):
        load_reward(entry.model_copy(update={"socket": "x" * 101}), root=folder)


def test_frames_are_read_back_and_broken_ones_are_errors() -> None:
    file = io.BytesIO()
    arrays = [torch.rand(2, 3), torch.tensor(1.5), torch.zeros(0, 4)]
    write_frame(file, {"kind": "x", "text": "é"}, arrays)
    data = file.getvalue()
    header, found = read_frame(io.BytesIO(data)) or ({}, [])
    assert header == {"kind": "x", "text": "é"}
    assert all(torch.equal(a, b) for a, b in zip(arrays, found, strict=True))
    assert read_frame(io.BytesIO(b"")) is None
    with pytest.raises(RtdmdError, match="in the middle of a frame"):
        read_frame(io.BytesIO(data[:-1]))
    for bad, message in (
        (b"GET / HTTP/1.1\r\n\r\n", "is not a frame"),
        (b"\0\0", "is not a frame"),
        (framed(b"{"), "header cannot be read .not JSON"),
        (framed(json.dumps({"arrays": [[-1]]}).encode()), "does not say the shapes"),
        (framed(json.dumps({"kind": "x", "arrays": [[2**20, 2**20]]}).encode()), "over the limit"),
    ):
        with pytest.raises(RtdmdError, match=message):
            read_frame(io.BytesIO(bad))
    with pytest.raises(ValueError, match="Out of range float"):
        write_frame(io.BytesIO(), {"value": float("nan")})


def framed(header: bytes) -> bytes:
    return struct.pack(">Q", len(header)) + header


def test_a_scorer_that_dies_stops_the_run(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Dying:
        name, differentiable, needs_metadata, range = "clipscore", True, False, (0.0, 1.0)

        def identity(self) -> dict[str, Any]:
            return {"name": self.name}

        def score(self, images: Any, prompts: Any, metadata: Any) -> torch.Tensor:
            raise KeyError("a fault that rtdmd did not foresee")

    with served(Dying(), folder / "d.sock"):
        remote = load_reward(reward_params(name="clipscore", model="x", socket="d.sock"), root=folder)
        with pytest.raises(RtdmdError, match="closed the connection; see its output"):
            remote.score(pictures(), PROMPTS, NONE)
        remote.close()  # type: ignore[attr-defined]
    assert "a fault that rtdmd did not foresee" in capfd.readouterr().err
    assert not (folder / "d.sock").exists()
