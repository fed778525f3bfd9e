"""Frames to films: VP9 or H.264 through PyAV, GIF and WebP through Pillow; no randomness."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from safe_o2o.errors import ConfigError, MissingDependencyError
from safe_o2o.files import write_atomic
from safe_o2o.types import Array

# VP9 first: it needs no licensed decoder, so that every Chromium and Firefox build plays it. Its
# real-time mode takes a fifth of the time of the good one for a fifth more bytes.
_CODECS = {
    "webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "5", "b": "0"}),
    "mp4": ("libx264", {"preset": "medium", "profile": "high", "movflags": "+faststart"}),
}
MIME = {"webm": "video/webm", "mp4": "video/mp4"}


def best_format() -> str:
    """`webm` (VP9) where the encoder is there, else `mp4` (H.264).

    Raises:
        MissingDependencyError: PyAV was built without either encoder.
    """
    for kind, (codec, _) in _CODECS.items():
        if codec in av.codecs_available:
            return kind
    raise MissingDependencyError(
        "PyAV has neither the VP9 nor the H.264 encoder", todo="pip install --upgrade av"
    )


def encode_video(frames: Array, fps: float, *, kind: str | None = None, crf: int = 30) -> bytes:
    """Encode frames as a film that browsers play from memory.

    Args:
        frames: `[T, H, W, 3]` uint8 RGB, H and W even.
        fps: frames a second.
        kind: "webm" or "mp4"; None takes `best_format`.
        crf: constant quality, 0 (best) to 63 (VP9) or 51 (H.264).

    Raises:
        ConfigError: wrong shape, dtype, rate, or an unknown kind.
        MissingDependencyError: PyAV lacks the encoder.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ConfigError(
            f"needs uint8[T, H, W, 3], got {frames.dtype}{list(frames.shape)}", where="video"
        )
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ConfigError(f"needs an even height and width, got {height} x {width}", where="video")
    if not (np.isfinite(fps) and fps > 0):
        raise ConfigError(f"frame rate must be positive, got {fps}", where="video")
    kind = kind or best_format()
    if kind not in _CODECS:
        raise ConfigError(f"unknown kind {kind!r}", where="video", todo=f"known: {list(_CODECS)}")
    codec, options = _CODECS[kind]
    if codec not in av.codecs_available:
        raise MissingDependencyError(
            f"PyAV has no encoder {codec}", todo="pip install --upgrade av"
        )
    buffer = io.BytesIO()
    rate = Fraction(fps).limit_denominator(1000)
    # `bitexact` leaves out random ids and library versions: same frames, same bytes.
    container: Any = av.open(buffer, "w", format=kind, options={"fflags": "+bitexact"})
    with container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {**options, "crf": str(crf), "g": str(max(1, round(fps * 2)))}
        stream.codec_context.thread_count = 1
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for array in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def write_video(path: str | Path, frames: Array, fps: float, *, crf: int = 30) -> Path:
    """Write a film; the ending (`.webm`, `.mp4`) says which kind. See `encode_video`.

    Raises:
        ConfigError: as `encode_video`, or another ending.
        StorageError: the disk refused.
    """
    path = Path(path)
    write_atomic(path, encode_video(frames, fps, kind=path.suffix.lstrip("."), crf=crf))
    return path


def decode_video(source: bytes | str | os.PathLike[str]) -> Array:
    """All frames `[T, H, W, 3]` of a film's bytes or file.

    Raises:
        ConfigError: it is no film.
    """
    try:
        opened = io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)
        with av.open(opened, "r") as film:
            return np.stack([f.to_ndarray(format="rgb24") for f in film.decode(video=0)])
    except (av.FFmpegError, ValueError) as error:
        raise ConfigError(f"is no film ({error})", where="video") from error


def animation(
    frames: Array | Sequence[Array],
    fps: float,
    *,
    kind: str = "webp",
    quality: int = 60,
    colours: int = 128,
) -> bytes:
    """Encode a short looping picture for a README.

    Args:
        frames: `[T, H, W, 3]` uint8 RGB.
        fps: frames a second.
        kind: "webp" (small) or "gif" (plays anywhere).
        quality: of WebP, 0 to 100.
        colours: palette size of a GIF; one palette for all frames, so that nothing flickers.

    Raises:
        ConfigError: no frames or an unknown kind.
    """
    if not len(frames) or kind not in ("webp", "gif"):
        raise ConfigError(
            f"needs frames and webp or gif, got {len(frames)} and {kind!r}", where="animation"
        )
    pictures = [Image.fromarray(np.asarray(frame)) for frame in frames]
    options: dict[str, Any] = {"quality": quality, "method": 6}
    if kind == "gif":
        sample = np.concatenate([np.asarray(p) for p in pictures[:: max(1, len(pictures) // 8)]])
        palette = Image.fromarray(sample).quantize(colours, method=Image.Quantize.MEDIANCUT)
        pictures = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
        options = {"optimize": True, "disposal": 1}
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        format=kind,
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / fps),
        loop=0,
        **options,
    )
    return buffer.getvalue()
