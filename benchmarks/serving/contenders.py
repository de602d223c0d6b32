"""Before the race: who takes part, are its answers right, and which of its settings is the fastest."""

import argparse
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.serving import closed_loop
from benchmarks.serving.catalog import LIMBECK, LIMBECK_WIRE, PEER_LIST, Peer, Setting, limbeck
from benchmarks.serving.report import Outcome, Try
from benchmarks.serving.server import Launch, Server, Wire
from benchmarks.serving.service_process import free_port
from benchmarks.serving.venvs import UnavailableError
from bundle import LAYOUT, Bundle
from service.engine.postprocess import FloatArray, activate
from service.engine.session import Session
from service.engine.tokenization import Tokenizer, pad

MAIN = 32
"""Connections at which settings are compared."""
TOLERANCE = 1e-5
MOST_PORTS = 3
"""That one peer takes, in a row."""


@dataclass(frozen=True)
class Contender:
    """A server, with every setting that is tried."""

    name: str
    wire: Wire
    launches: dict[str, Callable[[int, Path], Launch]]
    """Name of the setting -> from a port and a folder for what it writes to how it is started."""
    calibrated: bool = True
    """Whether it divides the logits by the bundle's temperature."""


@dataclass(frozen=True)
class Trial:
    """One contender before the race: which of its settings is the fastest, and are its answers right."""

    contender: Contender
    bundle: Bundle
    bodies: Path
    logs: Path
    texts: list[str]
    logits: FloatArray
    """(N, C) float32: of the texts, in this process."""
    seconds: int

    def best(self) -> Outcome:
        """Return the outcome with the setting of most requests a second; none when no setting works."""
        tries = []
        for setting in self.contender.launches:
            say(f"trying {self.contender.name}, {setting}")
            try:
                with self.start(setting) as server:
                    self._check(server)
                    closed_loop.run(server.url, self.bodies, MAIN, 1, lambda: None)
                    found = closed_loop.run(server.url, self.bodies, MAIN, self.seconds, lambda: None)
                    tries.append(Try(setting, found, None))
            except UnavailableError as error:
                tries.append(Try(setting, None, str(error)))
                say(f"{self.contender.name}, {setting}: {error}")
        working = [(one.measured.per_second, one.setting) for one in tries if one.measured is not None]
        return Outcome(self.contender.name, max(working)[1] if working else None, tries, {}, {})

    def start(self, setting: str) -> Server:
        """Return the running server; raises UnavailableError when it does not come up, twice."""
        try:
            return self._start(setting)
        except UnavailableError as error:
            say(f"{self.contender.name}, {setting}: {error}; once more")
            return self._start(setting)

    def _start(self, setting: str) -> Server:
        launch = self.contender.launches[setting](free_port(MOST_PORTS), self.bodies.parent)
        log = self.logs / f"{self.contender.name}.log"
        server = Server(launch, self.contender.wire, self.bundle.manifest.labels, log)
        try:
            return server.wait(self.texts[0])
        except BaseException:
            server.__exit__()
            raise

    def _check(self, server: Server) -> None:
        """Raise UnavailableError unless every text, asked 16 at a time, scores as it does in this process."""
        manifest = self.bundle.manifest
        temperature = manifest.temperature if self.contender.calibrated else 1.0
        expected = activate(self.logits, manifest.activation, temperature)
        with ThreadPoolExecutor(16) as pool:
            answers = pool.map(lambda text: server.classify([text])[0], self.texts)
            found = np.array([[answer[label] for label in manifest.labels] for answer in answers])
        worst = float(np.abs(found - expected).max())
        if worst > TOLERANCE:
            raise UnavailableError(f"its scores differ by up to {worst:.1e} from those of the same file in-process")


def contenders(bundle: Bundle, arguments: argparse.Namespace) -> list[Contender]:
    """Return Limbeck and the peers that were asked for."""
    chosen = {f"LIMBECK_{key.removeprefix('LIMBECK_').upper()}": value for key, value in arguments.limbeck_set}
    folder, variant, environments = bundle.folder, arguments.variant, arguments.environments

    def own(port: int, _: Path) -> Launch:
        return limbeck(arguments.limbeck.resolve(), sys.executable, folder, variant, port, chosen)

    told = ", ".join(f"{key}={value}" for key, value in chosen.items()) or "defaults"
    found = [Contender(LIMBECK, LIMBECK_WIRE, {told: own})]
    for peer in PEER_LIST:
        if arguments.peers is None or peer.folder in arguments.peers:
            launches = {
                setting.name: partial(_launch, peer, setting, folder, variant, environments)
                for setting in peer.settings
            }
            found.append(Contender(peer.folder, peer.wire, launches, peer.calibrated))
    return found


def _launch(
    peer: Peer, setting: Setting, bundle: Path, variant: str, environments: Path, port: int, scratch: Path
) -> Launch:
    return peer.launch(setting, bundle, variant, port, environments, scratch)


def in_process(bundle: Bundle, variant: str, texts: list[str]) -> tuple[FloatArray, float]:
    """Return each text's logits, run alone: (N, C) float32; and the mean number of tokens."""
    manifest = bundle.manifest
    session = Session(bundle.folder / manifest.variant(variant).file)
    tokenizer = Tokenizer(bundle.folder / LAYOUT.tokenizer, manifest.max_length)
    encodings = tokenizer.encode(texts)
    logits = np.concatenate([session.run(pad([encoding], tokenizer.pad_id)) for encoding in encodings])
    return logits, statistics.mean(encoding.tokens for encoding in encodings)


def say(message: str) -> None:
    """Print progress."""
    print(message, file=sys.stderr)
