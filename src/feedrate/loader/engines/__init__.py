"""How a loader fetches batches. A new engine is a subclass of Engine, listed in ENGINES."""

from feedrate.loader.engines.engine import Engine, Inline
from feedrate.loader.engines.processes import Processes
from feedrate.loader.engines.threads import Threads
from feedrate.timing.engine_traits import EngineTraits

ENGINES: dict[str, type[Engine]] = {"inline": Inline, "thread": Threads, "process": Processes}
# `auto` before its choice: workers of either kind
TRAITS = {"auto": EngineTraits(False, False, True)} | {name: engine.traits for name, engine in ENGINES.items()}

__all__ = ["ENGINES", "TRAITS", "Engine", "EngineTraits"]
