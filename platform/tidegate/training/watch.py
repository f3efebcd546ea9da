"""Watching a run: fetches its news while it goes on, and keeps beside its checkpoints what it has been through."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from tidegate.errors import TidegateError
from tidegate.training.progress import News

logger = logging.getLogger(__name__)

NEWS_EVERY_S = 0.5
OnNews = Callable[[News], None]


class Watch:
    """Fetches news while training runs, in a thread of its own, and once more at the end."""

    def __init__(self, monitor: Any, on_news: OnNews, folder: Path) -> None:
        self.monitor, self.on_news, self.folder = monitor, on_news, folder
        self._logged = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="tidegate-news")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=10)

    def _follow(self) -> None:
        while not self._over.wait(NEWS_EVERY_S):
            self._fetch()
        self._fetch()

    def _fetch(self) -> None:
        """News is a courtesy: training goes on without it."""
        with self._warned():
            news = ray.get(self.monitor.news.remote(), timeout=5)
            with self._warned():
                news.write(self.folder)
            self.on_news(news)

    @contextmanager
    def _warned(self) -> Iterator[None]:
        """What goes wrong is logged, and once while it stays the same."""
        try:
            yield
        except (OSError, ray.exceptions.RayError, TidegateError) as error:
            if str(error) != self._logged:
                logger.warning("some progress of the run was not told: %s", error)
            self._logged = str(error)
