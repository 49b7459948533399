"""What goes wrong with an engine, apart from what goes wrong on its nodes."""


class EngineError(RuntimeError):
    """An engine cannot start: says what is missing."""
