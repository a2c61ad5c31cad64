"""Pictures of a game with its score: as a film, MP4 or GIF, or in a window. Needs the extra `video`."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import itertools
import subprocess
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from cleanrl_utils.console import notice
from cleanrl_utils.errors import BadInput, WriteError, first_line
from cleanrl_utils.files import replacing

Show = Callable[[np.ndarray, int], None]
"""A function that takes one picture (H, W, 3) uint8 and the number of pictures per second."""

GIF_BYTES = 5_000_000
"""Size that a GIF stays under, so that web pages and repositories accept it."""
GIF_SECONDS = 120
"""Length at which a GIF is cut."""
GRID_PIXELS = 1280
"""Maximum width and height of the picture of a grid, so that it fits on a screen."""
LINE = 2
"""Pixels between the games of a grid."""


def film(path: Path, play: Callable[[Show], object]) -> None:
    """Film what `play` shows, for a training run; if that fails, a line says so, and the run goes on."""
    try:
        with Film(path) as show:
            play(show)
    except Exception as error:  # whatever an environment, ffmpeg or the disk raises
        notice(f"--capture-video: {path.name} is not made ({first_line(error)}); the run goes on")


def require_ffmpeg(flag: str) -> None:
    """Raise `BadInput` for the flag that films, unless ffmpeg runs."""
    import imageio_ffmpeg  # noqa: PLC0415 - an extra

    try:
        with starting_ffmpeg():
            subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-version"], check=True, capture_output=True)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise BadInput(flag, "on", f"needs ffmpeg, which does not run here ({first_line(error)})") from None


class Screen(gym.Wrapper):
    """Shows each frame that an environment renders, with the score so far in a band below."""

    def __init__(self, env: gym.Env, show: Show, fps: int) -> None:
        super().__init__(env)
        self.show, self.fps, self.score = show, fps, 0.0

    def reset(self, **settings: Any) -> tuple[Any, dict[str, Any]]:
        """Reset, and show the first frame."""
        result = self.env.reset(**settings)
        self.score = 0.0
        self.show(with_score(self.env.render(), self.score), self.fps)
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, add the reward to the score and show the new frame."""
        obs, reward, *rest = self.env.step(action)
        self.score += float(reward)
        self.show(with_score(self.env.render(), self.score), self.fps)
        return obs, reward, *rest


def with_score(frame: np.ndarray, score: float) -> np.ndarray:
    """Return a frame with the score in a band below it; small screens are doubled, and sides made even, for H.264."""
    height, width = frame.shape[:2]
    picture = np.concatenate([frame, _band(width, max(14, height // 15), f"score {score:.10g}")])
    if height < 300:
        picture = picture.repeat(2, axis=0).repeat(2, axis=1)
    return _even(picture)


def _even(picture: np.ndarray) -> np.ndarray:
    return picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]


@functools.lru_cache(maxsize=8)
def _band(width: int, height: int, text: str) -> np.ndarray:
    """Light text on black, (height, width, 3)."""
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 - an extra

    band = Image.new("RGB", (width, height))
    font = ImageFont.load_default(size=height * 0.75)
    ImageDraw.Draw(band).text((4, height / 2), text, fill=(220, 220, 220), font=font, anchor="lm")
    return np.asarray(band)


class Reel:
    """Keeps the pictures that it is called with, all of one shape, in memory: 11 MB for a minute of Pong."""

    def __init__(self) -> None:
        self.packed: list[bytes] = []
        self.shape, self.fps = (0, 0, 0), 0

    def __call__(self, picture: np.ndarray, fps: int) -> None:
        """Take one more picture."""
        self.packed.append(zlib.compress(picture.tobytes(), 1))
        self.shape, self.fps = picture.shape, fps

    def pictures(self, end: int | None = None, stride: int = 1) -> Iterator[np.ndarray]:
        """Yield the pictures before `end`, one in every `stride`."""
        for packed in self.packed[:end:stride]:
            yield np.frombuffer(zlib.decompress(packed), np.uint8).reshape(self.shape)


def show_grid(show: Show, columns: int, rows: int, play: Callable[[Show, int], float]) -> list[float]:
    """Show games as one picture, row by row; returns their scores. `play(show, number)` plays a game and returns its score.

    The games are played one after the other, and shown when all have been played. A game that has ended keeps its last
    picture until the longest game ends.
    """

    def played(number: int) -> tuple[Reel, float]:
        reel = Reel()
        score = play(lambda picture, fps: reel(tile(picture, GRID_PIXELS // columns, GRID_PIXELS // rows), fps), number)
        return reel, score

    reels, scores = zip(*map(played, range(columns * rows)), strict=True)
    now: list[np.ndarray] = []
    for new in itertools.zip_longest(*(reel.pictures() for reel in reels)):
        now = [now[game] if picture is None else picture for game, picture in enumerate(new)]
        lines = [np.concatenate(now[first : first + columns], axis=1) for first in range(0, len(now), columns)]
        show(np.concatenate(lines), reels[0].fps)
    return [*scores]


def tile(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """Shrink a picture by a whole factor until it fits, with a black line below it and to its right."""
    from PIL import Image  # noqa: PLC0415 - an extra

    factor = max(-(-picture.shape[1] // (width - LINE)), -(-picture.shape[0] // (height - LINE)))
    small = _even(np.asarray(Image.fromarray(picture).reduce(factor)))
    return np.pad(small, ((0, LINE), (0, LINE), (0, 0)))


class Film:
    """Writes the pictures it is called with to FILE.mp4 or FILE.gif, whole or not at all; a context manager."""

    def __init__(self, path: Path) -> None:
        if path.suffix not in (".mp4", ".gif"):
            raise BadInput("--video", str(path), "must end in .mp4 or .gif")
        self.path = path
        self.temporary = path.with_name(f".{path.name}.tmp{path.suffix}")  # ffmpeg goes by the suffix
        self.writer: Any = None
        self.reel = Reel()  # of a GIF
        self.num_shown, self.fps = 0, 0

    def __enter__(self) -> Film:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.temporary.touch()
        except OSError as error:
            raise WriteError(self.path, error) from None
        return self

    def __call__(self, picture: np.ndarray, fps: int) -> None:
        """Take one more picture."""
        self.fps = fps
        if self.path.suffix == ".mp4":
            try:
                if self.writer is None:
                    self.writer = mp4_writer(self.temporary, picture, fps)
                self.writer.send(np.ascontiguousarray(picture))
            except OSError:  # ffmpeg has ended; its message is a page long
                raise self._cut_short() from None
        elif self.num_shown % self.step == 0 and self.num_shown < GIF_SECONDS * fps:
            self.reel(picture, fps)
        self.num_shown += 1

    @property
    def step(self) -> int:
        """One picture in this many goes into the GIF: about 20 per second, since its clock counts hundredths of a second."""
        return max(1, round(self.fps / 20))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Put the film in its place, unless something went wrong."""
        try:
            if self.writer is not None:
                self.writer.close()
            if kind is None and self.path.suffix == ".gif":
                self._write_gif()
            elif kind is None:
                if num_pictures(self.temporary) != self.num_shown:  # ffmpeg does not report a full disk
                    raise self._cut_short()
                self.temporary.replace(self.path)
        except WriteError:
            raise
        except OSError as error:
            raise WriteError(self.path, error) from None
        finally:
            self.temporary.unlink(missing_ok=True)

    def _cut_short(self) -> WriteError:
        return WriteError(self.path, OSError(errno.EIO, "ffmpeg has not written all of it: is the disk full?"))

    def _write_gif(self) -> None:
        """Write as many pictures per second as fit into `GIF_BYTES`; if the fewest do not fit, only the first part."""
        kept, stride = len(self.reel.packed), 1
        while True:
            samples = list(self.reel.pictures(kept, max(1, kept // 32)))
            content = gif(self.reel.pictures(kept, stride), samples, round(100 * self.step * stride / self.fps))
            if len(content) < GIF_BYTES or kept == 1:
                break
            if stride == 2:
                kept = max(1, int(kept * min(0.8, 0.9 * GIF_BYTES / len(content))))
            stride = 2
        if kept * self.step < self.num_shown:
            seconds = kept * self.step / self.fps
            notice(f"{self.path}: a GIF of the first {seconds:.0f} seconds; it takes {GIF_SECONDS} at most, and 5 MB")
        with replacing(self.path) as file:
            file.write(content)


def mp4_writer(path: Path, picture: np.ndarray, fps: int) -> Any:
    """Return a generator that writes the pictures sent to it as H.264."""
    import imageio_ffmpeg  # noqa: PLC0415 - an extra

    height, width = picture.shape[:2]
    writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=fps, macro_block_size=2, ffmpeg_log_level="error")
    with starting_ffmpeg():
        writer.send(None)
    return writer


@contextlib.contextmanager
def starting_ffmpeg() -> Iterator[None]:
    """Keep JAX from warning of a fork: the forked process becomes ffmpeg at once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        yield


def num_pictures(path: Path) -> int:
    """Return how many pictures an MP4 file holds; 0 if it is not an MP4 file."""
    import imageio_ffmpeg  # noqa: PLC0415 - an extra

    try:
        with starting_ffmpeg():
            return imageio_ffmpeg.count_frames_and_secs(str(path))[0]
    except RuntimeError:
        return 0


def gif(pictures: Iterator[np.ndarray], samples: list[np.ndarray], hundredths: int) -> bytes:
    """Make a GIF that shows each picture for `hundredths` of a second, in the 256 colours that fit the samples best."""
    from PIL import Image  # noqa: PLC0415 - an extra

    palette = Image.fromarray(np.concatenate(samples)).quantize(256, dither=Image.Dither.NONE)
    frames = (Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)
    file = io.BytesIO()
    next(frames).save(file, "GIF", save_all=True, append_images=frames, duration=10 * hundredths, loop=0)
    return file.getvalue()


class Window:
    """Shows pictures on the screen, at the speed of the game; raises `KeyboardInterrupt` when it is closed.

    `driver` is what SDL draws with: `dummy` or `offscreen` where there is no screen.
    """

    def __init__(self, title: str) -> None:
        import pygame  # noqa: PLC0415 - an extra

        self.pygame, self.clock, self.title = pygame, pygame.time.Clock(), title
        pygame.display.init()
        self.driver = pygame.display.get_driver()

    def __call__(self, picture: np.ndarray, fps: int) -> None:
        """Show one picture, and wait until the next one is due."""
        display = self.pygame.display
        if not display.get_init() or display.get_surface() is None:  # an environment drawn by pygame quits it at its end
            display.init()
            display.set_mode(picture.shape[1::-1])
            display.set_caption(self.title)
        self.pygame.surfarray.blit_array(display.get_surface(), picture.swapaxes(0, 1))
        display.flip()
        if self.pygame.event.get(self.pygame.QUIT):
            raise KeyboardInterrupt
        self.clock.tick(fps)

    def close(self) -> None:
        """Close the window."""
        self.pygame.display.quit()
